package postgres

import "context"

// SweepDeep has a node take over from those that are dead, and look for requests whose job is gone.
func (s *Store) SweepDeep(ctx context.Context) error { return s.sweep(ctx, true) }
