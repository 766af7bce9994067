// Package egress is how tandem calls strangers: the callback URLs that anybody may hand in. It hides which addresses
// are forbidden, how many calls go to one destination at a time, when a failing destination is left alone, and
// net/http.
//
// It promises that no packet goes to an address that policy refuses, whatever a name resolves to, because it judges the
// very address that is being dialled ([Dialer]). [Client.Check] is a weaker, faster check that gives a caller a
// friendly answer at submission; the dial repeats all of it. A destination that hangs costs only its own calls.
// Everything is bounded: destinations remembered, calls that wait, connections kept, bytes read, and the time of one
// exchange.
//
// The engine calls [Client].
package egress
