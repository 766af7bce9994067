package postgres_test

import (
	"testing"

	"tandem"
	"tandem/internal/store"
	"tandem/internal/tandemtest"
)

// A node that stands still in the middle of a transaction holds rows. Others take its work over all the same: the server
// ends the transaction before it takes the node for dead.
func TestFrozenTransactionHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	url := emptyPostgres(t, tandemtest.Volatile)
	frozen, other := joinPostgres(t, url), joinPostgres(t, url)
	r := newSync()
	accept(t, frozen, r, store.LaneNone)
	t.Cleanup(frozen.Freeze(r.ID))
	frozen.FallSilent(true)
	waitStatus(t, other, r.ID, tandem.StatusFailed)
}
