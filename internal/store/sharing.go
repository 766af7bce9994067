package store

import "tandem/internal/limit"

// jobBytes of data count as much as one more job when owners take turns.
const jobBytes = 64 << 10

// mayRun reports whether an owner that has some of the running jobs may have one more: no owner holds all slots of a
// lane, so that the next one to come finds some.
func mayRun(capacity, running, own int) bool { return own < limit.Share(capacity, running-own) }

// mayHold is mayRun for bytes. One job of each owner may be of any size.
func mayHold(budget, held, own, size int64) bool {
	return own == 0 || own+size <= int64(limit.Share(int(budget), int(held-own)))
}
