package storetest

import (
	"time"

	"tandem"
	"tandem/internal/store"
)

// end is how a job ends, as the oracle has drawn it and as the model reads it. next says the same to a store.
type end struct {
	kind    endKind
	at      time.Time // of retried and postponed
	runs    int       // of retried
	outcome store.Outcome
	attempt *tandem.Attempt // nil: none was made
	parked  string          // the destination that a postponed callback waits for; "": none
	freed   [2]string
}

type endKind int

const (
	released endKind = iota
	finished
	retried
	delivered
	givenUp
	postponed
)

func (e end) next() store.Next {
	var next store.Next
	switch e.kind {
	case released:
		next = store.Release()
	case finished:
		next = store.Finished(e.outcome, "")
	case retried:
		next = store.RetryAt(e.at, e.runs)
	case delivered:
		next = store.Delivered(*e.attempt)
	case givenUp:
		next = store.GiveUp(*e.attempt)
	case postponed:
		next = store.Postpone(e.at, e.parked)
		if e.attempt != nil {
			next = store.Redeliver(*e.attempt, e.at, e.parked)
		}
	}
	return next.Freeing(e.freed[:]...)
}
