// Package limit decides whether one more call may pass, per key: a circuit breaker ([Breaker]), a rate limit ([Rate]),
// a queue with turns for its owners ([Turns]), and a bounded table with one value per key ([Keyed]).
//
// It hides the state machine of a breaker and the order of use in the table. It promises that nothing in it grows
// without bound, that nothing in it waits or starts a goroutine, and that a key in use is never forgotten. Egress asks
// it about every destination, server about every client.
package limit
