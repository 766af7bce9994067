package audit

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"

	"tandem"
	"tandem/internal/receiver"
)

const (
	vectorSample  = 3 // vectors of a kind at the quick level, beside the basic ones
	mostReachable = 3 // accepted vectors at the end of a check
)

// nobody replaces public hosts in vectors: after an acceptance nobody is called (RFC 6761).
const nobody = "audit.invalid"

// kind groups the vectors by the reason of their refusal.
type kind int

const (
	kindMetadata kind = iota // refused in every mode
	kindPrivate              // refused unless opted in
	kindNotation             // not a callable URL
	kindPort                 // refused for its port
	kindNone                 // not refused
)

// vectors returns the URLs of a kind, refused by a strict deployment: first the basic ones of every audit, and their
// number. It leaves out URLs of the audit's own receiver, because the operator has opted it in.
func (t *target) vectors(want kind) (urls []string, first, leftOut int) {
	if want == kindPort {
		return ports(), 4, 0
	}
	var others []string
	for _, vector := range Vectors() {
		address := strings.ReplaceAll(vector.URL, "example.com", nobody)
		switch {
		case vector.kind() != want || !utf8.ValidString(address): // JSON has no other text
		case want == kindPrivate && t.leadsToReceiver(address):
			leftOut++
		case vector.Basic:
			urls = append(urls, address)
		default:
			others = append(others, address)
		}
	}
	return slices.Concat(urls, others), len(urls), leftOut
}

// ports are closed ports; first a few random ones.
func ports() (urls []string) {
	all := []int{22, 25, 79, 81, 442, 444, 2375, 3306, 5432, 6379, 6443, 8080, 9200, 10250, 11211, 27017, 65535}
	for range 4 {
		all = slices.Insert(all, 0, 10_000+rand.IntN(50_000))
	}
	for _, port := range all {
		urls = append(urls, "http://"+net.JoinHostPort(nobody, strconv.Itoa(port))+"/")
	}
	return urls
}

// kind returns the reason of a vector's refusal in production; kindNone without a refusal, or if it takes more than a
// URL.
func (v *Vector) kind() kind {
	switch {
	case v.Production == FateCalled, v.Production == FateStopped, v.Answers != nil, v.Receiver != "", v.Own.IsValid():
		return kindNone
	case v.Production == FateInvalid:
		return kindNotation
	case v.Demo == FateBlocked:
		return kindMetadata
	case v.Class == ClassPort:
		return kindNone // ports are a kind of their own
	default:
		return kindPrivate
	}
}

// leadsToReceiver reports whether a URL names the host of the audit's receiver, in any form: also as the end of an IPv6
// address, where transition mechanisms keep an IPv4 address.
func (t *target) leadsToReceiver(address string) bool {
	host, own := canonicalHost(address), canonicalHost(t.cfg.CallbackURL)
	if host == "" || host == own {
		return host != ""
	}
	outer, err := netip.ParseAddr(host)
	inner, err2 := netip.ParseAddr(own)
	return err == nil && err2 == nil && outer.Is6() && inner.Is4() && [4]byte(outer.AsSlice()[12:]) == inner.As4()
}

// canonicalHost is the host of a URL in one form: lower-case ASCII without a dot at the end, an address as netip writes
// it; "" if there is none.
func canonicalHost(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	host := u.Hostname()
	if ascii, err := idna.Lookup.ToASCII(host); err == nil {
		host = ascii
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.Unmap().String()
	}
	return host
}

// sample takes the first ones and some of the others, evenly, in a quick audit.
func (t *target) sample(urls []string, first int) []string {
	if t.cfg.Level == LevelFull || len(urls) <= first+vectorSample {
		return urls
	}
	some, others := slices.Clone(urls[:first]), urls[first:]
	for i := range vectorSample {
		some = append(some, others[i*len(others)/vectorSample])
	}
	return some
}

// submits sends every vector of a kind as a callback URL. It must be refused then, or be seen blocked at the dial.
func submits(want kind) checkFunc {
	return func(ctx context.Context, t *target, v *verdict) {
		all, first, leftOut := t.vectors(want)
		refused := 0
		var accepted []answer
		for _, address := range t.sample(all, first) {
			a := t.submit(ctx, address)
			switch {
			case a.Err != nil:
				v.doubtf("%s", a)
				return
			case a.refused():
				refused++
			case a.Status == http.StatusAccepted:
				accepted = append(accepted, a)
			default:
				v.doubtf("%s is neither a refusal nor a 202", a)
			}
			if len(accepted) == mostReachable {
				break
			}
		}
		for _, a := range accepted {
			if attempt, last := t.firstAttempt(ctx, a); attempt == nil {
				v.failf("%s; its outcome is unknown: %s", a, last)
			} else if attempt.Outcome != tandem.OutcomeBlocked {
				v.failf("%s, and tried: %s", a, oneLine(string(attempt.Outcome)))
			}
		}
		if v.empty() {
			v.passf("%d of %d vectors refused at submission, %d at the dial", refused, len(all), len(accepted))
			if leftOut > 0 {
				v.passf("%d left out: they name the audit's own receiver", leftOut)
			}
		}
	}
}

// checkRedirect answers callbacks with redirects to a hook of ours, and wants no call there.
func checkRedirect(ctx context.Context, t *target, v *verdict) {
	codes := []int{http.StatusFound, http.StatusTemporaryRedirect}
	if t.cfg.Level == LevelFull {
		codes = append(codes, http.StatusMovedPermanently, http.StatusSeeOther, http.StatusPermanentRedirect)
	}
	for _, code := range codes {
		canary := t.cfg.Receiver.New(http.StatusOK, "")
		first, a, ok := t.deliver(ctx, v, code, t.callback(canary))
		if !ok {
			return
		}
		attempt, last := t.firstAttempt(ctx, a)
		switch {
		case len(canary.Calls()) > 0:
			v.failf("a redirect with %d was followed", code)
		case attempt == nil:
			v.doubtf("a redirect with %d: no attempt within %v: %s", code, t.cfg.Timeout, last)
		case len(first.Calls()) == 0:
			v.doubtf("a redirect with %d: the callback did not arrive (%s); is --callback-url right?", code,
				oneLine(string(attempt.Outcome)))
		case attempt.Outcome != tandem.OutcomeRedirect:
			v.failf("a redirect with %d counts as %s", code, oneLine(string(attempt.Outcome)))
		default:
			v.passf("a redirect with %d was not followed", code)
		}
	}
}

// checkArrival submits addresses of the audit's own receiver without an opt-in: its host in other spellings, other
// names of the same machine, and another port. Only arrivals count. Two allowed callbacks, one before and one after
// them, prove the progress of the deployment.
func checkArrival(ctx context.Context, t *target, v *verdict) {
	control := func(when string) bool {
		h, a, ok := t.deliver(ctx, v, http.StatusOK, "")
		if ok && !h.Wait(ctx, t.cfg.Timeout) {
			v.doubtf("%s: the callback %s did not arrive within %v; is --callback-url right?", a, when, t.cfg.Timeout)
			ok = false
		}
		return ok
	}
	if !control("before") {
		return
	}
	type attempt struct {
		*receiver.Hook
		answer
	}
	var tried []attempt
	for _, base := range t.otherAddresses() {
		h := t.cfg.Receiver.New(http.StatusOK, "")
		tried = append(tried, attempt{h, t.submit(ctx, base+"/"+h.Path)})
	}
	if !control("after") || pause(ctx, t.cfg.Quiet) != nil {
		return
	}
	for _, a := range tried {
		v.expect(a.answer, len(a.Calls()) == 0, "and it arrived")
	}
}

// otherAddresses are further bases of the receiver, without an opt-in of the operator.
func (t *target) otherAddresses() []string {
	base, err := url.Parse(t.cfg.CallbackURL)
	if err != nil {
		return nil
	}
	port := portOf(base)
	at := func(host string) string {
		return base.Scheme + "://" + host + ":" + port + strings.TrimSuffix(base.Path, "/")
	}
	all := []string{
		at("127.0.0.1"), at("localhost"), at("LOCALHOST."), at("[::1]"), at("0.0.0.0"), at("[::]"), at("127.1"),
		at("2130706433"),
	}
	if t.cfg.OtherURL != "" {
		all = append(all, strings.TrimSuffix(t.cfg.OtherURL, "/"))
	}
	addr, err := netip.ParseAddr(base.Hostname())
	if err == nil && addr.Unmap().Is4() {
		a := addr.Unmap().As4()
		number := uint32(a[0])<<24 | uint32(a[1])<<16 | uint32(a[2])<<8 | uint32(a[3])
		all = append(all,
			at(fmt.Sprint(number)), at(fmt.Sprintf("0x%08x", number)),
			at(fmt.Sprintf("0%o.%d.%d.%d", a[0], a[1], a[2], a[3])),
			at(fmt.Sprintf("0x%x.0x%x.0x%x.0x%x", a[0], a[1], a[2], a[3])),
			at(fmt.Sprintf("%d.%d", a[0], number&0xffffff)),
			at(fmt.Sprintf("%d.%d.%d.%03d", a[0], a[1], a[2], a[3])),
		)
		for _, e := range embeddings(a) {
			// A mapped address is the address itself, and ISATAP stands in somebody's public prefix.
			if t.cfg.Level == LevelFull && e.name != "mapped" && !strings.HasPrefix(e.name, "isatap") {
				all = append(all, at(bracketed(e.address)))
			}
		}
		all = append(all, at("[::ffff:"+addr.Unmap().String()+"%25lo]"),
			at("user@"+bracketed(addr)))
	}
	return slices.DeleteFunc(all, func(address string) bool {
		other, err := url.Parse(address)
		own := err == nil && other.Port() == port && other.User == nil &&
			canonicalHost(address) == canonicalHost(t.cfg.CallbackURL)
		return own && !strings.Contains(address, "%25")
	})
}

func checkOwnAddress(ctx context.Context, t *target, v *verdict) {
	a := t.submit(ctx, t.base.String()+"/healthz")
	if a.Err != nil || a.refused() {
		v.judge(a, isRefused)
		return
	}
	if a.Status != http.StatusAccepted {
		v.doubtf("%s is neither a refusal nor a 202", a)
		return
	}
	attempt, last := t.firstAttempt(ctx, a)
	switch {
	case attempt == nil:
		v.doubtf("%s; its outcome is unknown: %s", a, last)
	case attempt.Outcome == tandem.OutcomeBlocked:
		v.passf("%s, and blocked at the dial", a)
	case attempt.StatusCode == 0:
		v.doubtf("%s, but it did not get through (%s)", a, oneLine(string(attempt.Outcome)))
	case publicHost(t.base.Hostname()):
		v.doubtf("%s, and answered with %d: the public address leads back here; "+
			"that of the listener may still be refused", a, attempt.StatusCode)
	default:
		v.failf("%s, and answered with %d", a, attempt.StatusCode)
	}
}

// checkOracle compares the refusals of unrelated addresses.
func checkOracle(ctx context.Context, t *target, v *verdict) {
	var first answer
	for _, address := range []string{
		"http://169.254.169.254/", "http://metadata.google.internal/", "http://224.0.0.1/", "http://127.0.0.1/",
		"http://10.255.255.1/",
	} {
		a := t.submit(ctx, address)
		switch {
		case a.Err != nil:
			v.doubtf("%s", a)
			return
		case a.code() == "": // accepted here: ssrf-private fails then
		case first.Sent == "":
			first = a
		case a.words() != first.words():
			v.failf("%s says %q, %s says %q", first, oneLine(first.words()), a, oneLine(a.words()))
		default:
			v.passf("%s, in the same words as before", a)
		}
	}
}

// words are the texts of an error for its caller.
func (a answer) words() string {
	p := a.problem()
	if p == (problem{}) {
		return string(a.Body)
	}
	return string(p.Code) + ": " + p.Title + ": " + p.Detail
}
