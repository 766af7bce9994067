// Package egress calls strangers: the callback URLs of any caller. It hides the forbidden addresses, the number of
// calls to one destination at a time, the breakers of failing destinations, and net/http.
//
// It promises that no packet goes to a forbidden address, however a name resolves, because it judges the very address
// being dialled ([Dialer]). [Client.Check] is a weaker, faster check with a friendly answer at submission; the dial
// repeats all of it. A destination that hangs costs only its own calls. Everything is bounded: destinations remembered,
// waiting calls, connections kept, bytes read, and the time of one exchange.
//
// The engine calls [Client].
package egress
