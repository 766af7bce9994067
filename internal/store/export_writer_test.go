package store

import "context"

// HoldCommits has a commit of each of a node's writers seem under way until release is called.
func (s *Postgres) HoldCommits() (release func()) {
	for _, w := range s.writers {
		w.busy <- struct{}{}
	}
	return func() {
		for _, w := range s.writers {
			<-w.busy
		}
	}
}

// Rejoin is what a node does that the others took for dead.
func (s *Postgres) Rejoin(ctx context.Context) error { return s.rejoin(ctx) }
