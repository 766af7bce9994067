package store

// FallSilent has a node give no sign of life, as if it were stopped, while it goes on with what it does.
func (s *Postgres) FallSilent(yes bool) { s.silent.Store(yes) }
