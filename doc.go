// Package tandem is the vocabulary of tandem: requests and their statuses, the
// attempts to deliver a callback, the errors a caller can see, and the
// signature on every callback.
//
// It depends on the standard library only. A receiver of callbacks imports it for [ParseSecret] and [Secret.Verify].
// Every other package of tandem builds on these nouns.
package tandem

// Version is the version of the binary, as callbacks, /healthz and `tandem version` show it. A release build sets it
// with -ldflags "-X tandem.Version=…".
var Version = "0.1.0-dev"
