package postgres

import (
	"context"
	"sync"

	"github.com/jackc/pgx/v5"

	"tandem/internal/store"
)

// Freeze has a node stand still in the middle of a transaction that holds a request's row, as a process that
// is stopped does, until thaw is called.
func (s *Store) Freeze(id string) (thaw func()) {
	frozen, thawed := make(chan struct{}), make(chan struct{})
	var writing sync.WaitGroup
	writing.Go(func() {
		tell := sync.OnceFunc(func() { close(frozen) })
		defer tell()
		_ = s.do(context.Background(), func(ctx context.Context, tx pgx.Tx, _ store.Deltas) error { // it fails: the server has ended it
			raw, err := uuidOf(id)
			if err == nil {
				_, err = tx.Exec(ctx, `SELECT FROM requests WHERE id = $1 FOR UPDATE`, raw)
			}
			tell()
			<-thawed
			return err
		})
	})
	<-frozen
	return sync.OnceFunc(func() {
		close(thawed)
		writing.Wait()
	})
}
