package postgres

import "context"

// HoldCommits has a commit of each of a node's writers seem under way, to a database that does not answer, until release is called.
func (s *Store) HoldCommits() (release func()) {
	s.silent.Store(true)
	err := errAway
	s.failure.Store(&err)
	for _, w := range s.writers {
		w.busy <- struct{}{}
	}
	return func() {
		for _, w := range s.writers {
			<-w.busy
		}
		s.failure.Store(nil)
		s.silent.Store(false)
	}
}

// Rejoin is what a node does that the others took for dead.
func (s *Store) Rejoin(ctx context.Context) error { return s.rejoin(ctx) }
