package audit

import (
	"net/netip"
	"strings"

	"tandem"
)

// maxURL is the length of the longest callback URL that tandem takes, in bytes.
const maxURL = 2048

// Vector is one way to aim a callback at something, and what must become of it. The audit fires the
// list at deployments, the tests of the package egress at the guard itself.
//
// A vector is a URL, or a recipe: a URL with at most one of Answers, Receiver and Own.
type Vector struct {
	Name       string // unique, stable: class/what
	Class      Class
	URL        string
	Why        string // what is tried, or why it is allowed
	Production Fate   // in production mode, with nothing opted in
	Demo       Fate   // in demo mode

	// What the name in URL resolves to: one entry per look-up, the last for all later ones,
	// with a time to live of 0. A text that ends in a dot is a CNAME, which the rest belongs to.
	Answers [][]string
	// What the receiver at URL answers, from the status line to the last byte. No part of
	// it may cause another call.
	Receiver string
	// Where the deployment itself listens: URL leads there, its port is allowed and
	// nobody may call it.
	Own netip.AddrPort
}

// Class groups vectors by what they play with.
type Class string

// The classes.
const (
	ClassNotation  Class = "notation"  // an address in a form that some parser understands
	ClassName      Class = "name"      // names that mean this machine or network
	ClassBlock     Class = "block"     // the ends of every special block, and their neighbours
	ClassEmbedding Class = "embedding" // IPv4 inside of IPv6
	ClassMetadata  Class = "metadata"  // the metadata services of clouds
	ClassScheme    Class = "scheme"    // other schemes
	ClassShape     Class = "shape"     // what else is in a URL: user names, backslashes, missing parts
	ClassSmuggling Class = "smuggling" // line breaks that want to become headers or requests
	ClassPort      Class = "port"      // ports
	ClassAnswer    Class = "answer"    // what DNS answers: Answers
	ClassRedirect  Class = "redirect"  // what a receiver answers: Receiver
	ClassOwn       Class = "own"       // our own listening address: Own
)

// Fate is what must become of a callback to a [Vector].
type Fate string

// The fates. Called is the only one after which a connection to where URL points
// may be seen: such a vector is handed only to a deployment whose network is ours.
const (
	FateInvalid Fate = "invalid" // refused at submission with CodeInvalidCallbackURL, and by the dial
	FateBlocked Fate = "blocked" // refused at submission with CodeCallbackBlocked, and by the dial
	FateStopped Fate = "stopped" // accepted at submission, where no name is looked up; the dial refuses
	FateCalled  Fate = "called"  // allowed, once, at an allowed address and with our headers alone
)

// Code is that of the refusal at submission, "" where there is none.
func (f Fate) Code() tandem.Code {
	switch f {
	case FateInvalid:
		return tandem.CodeInvalidCallbackURL
	case FateBlocked:
		return tandem.CodeCallbackBlocked
	default:
		return ""
	}
}

// Vectors returns the list, in the same order always.
func Vectors() []Vector {
	var all []Vector
	for _, group := range [][]Vector{
		notationVectors(), nameVectors(), blockVectors(), embeddingVectors(), metadataVectors(),
		schemeVectors(), shapeVectors(), smugglingVectors(), portVectors(),
		answerVectors(), redirectVectors(), ownVectors(),
	} {
		all = append(all, group...)
	}
	return all
}

// basics are the vectors that a quick audit always tries; of the others it takes a sample.
// :: name → true
var basics = map[string]bool{
	"metadata/aws": true, "metadata/aws-ecs": true, "metadata/aws-eks": true, "metadata/aws-6": true,
	"metadata/aws-name": true, "metadata/google-6": true, "metadata/google-name": true,
	"metadata/google-name-goog": true, "metadata/azure-wire": true, "metadata/alibaba": true,
	"metadata/alibaba-6": true, "metadata/oracle-classic": true, "metadata/oracle-6": true, "metadata/akamai-6": true,
	"metadata/scaleway": true, "metadata/scaleway-6": true, "metadata/openstack-6": true, "metadata/tencent": true,
	"metadata/tencent-name": true, "metadata/equinix-name": true, "metadata/ibm-name": true,
	"metadata/notation-decimal": true, "metadata/notation-hex": true, "metadata/notation-octal": true,

	"notation/loopback": true, "name/localhost": true, "name/internal": true, "block/10.0.0.0/8/inside": true,
	"block/100.64.0.0/10/inside": true, "block/127.0.0.0/8/inside": true, "block/172.16.0.0/12/inside": true,
	"block/192.168.0.0/16/inside": true, "block/198.18.0.0/15/inside": true, "notation/loopback-6-long": true,
	"block/fc00::/7/inside": true, "embedding/mapped-private-a": true, "embedding/nat64-private-a": true,

	"notation/decimal": true, "notation/octal-parts": true, "notation/hex-parts": true, "notation/two-parts": true,
	"notation/leading-zero": true, "shape/user": true, "shape/backslash-at": true, "scheme/file": true,
}

// basic reports whether a quick audit always tries the vector.
func (v *Vector) basic() bool {
	return basics[v.Name] || strings.HasPrefix(v.Name, string(ClassMetadata)+"/"+embeddedCloud)
}

// The fates, short enough for a table.
const (
	invalid = FateInvalid
	blocked = FateBlocked
	stopped = FateStopped
	called  = FateCalled
)

// aim is a vector that is a URL and nothing else.
type aim struct {
	name, url, why   string
	production, demo Fate
}

// vectors gives each aim its class.
func (c Class) vectors(aims []aim) []Vector {
	all := make([]Vector, len(aims))
	for i, a := range aims {
		all[i] = Vector{Name: string(c) + "/" + a.name, Class: c, URL: a.url, Why: a.why, Production: a.production, Demo: a.demo}
	}
	return all
}
