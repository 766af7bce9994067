package store

import "tandem/internal/limit"

// MayRun reports whether an owner that has some of the running jobs may have one more: no owner holds all slots of a
// lane, so that the next one to come finds some.
func MayRun(capacity, running, own int) bool { return own < limit.Share(capacity, running-own) }

// MayHold is MayRun for bytes. One job of each owner may be of any size.
func MayHold(budget, held, own, size int64) bool {
	return own == 0 || own+size <= int64(limit.Share(int(budget), int(held-own)))
}
