// Package tandem is the vocabulary of tandem: requests and their statuses, the
// attempts to deliver a callback, the errors a caller can see, and the
// signature on every callback.
//
// It depends on the standard library only. A program that receives callbacks
// imports it for [ParseSecret] and [Secret.Verify]; every other package of
// tandem builds on these nouns and none of them is defined twice.
package tandem

// Version is what the binary calls itself in callbacks, in /healthz and in
// `tandem version`. A release build sets it with -ldflags "-X tandem.Version=…".
var Version = "0.1.0-dev"
