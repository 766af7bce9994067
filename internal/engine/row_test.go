package engine_test

import (
	"context"
	"encoding/json"
	"testing"

	"tandem"
	"tandem/internal/store"
	"tandem/internal/work"
)

// TestTaskSeesItsOwnRow has tasks read the history while they run: the row of a request, sync or
// async, is committed before its work starts. (An async row may say pending a moment longer.)
func TestTaskSeesItsOwnRow(t *testing.T) {
	t.Parallel()
	for _, mode := range tandem.Modes {
		for _, class := range []work.Class{work.IO, work.CPU} {
			t.Run(string(mode)+" "+string(class), func(t *testing.T) {
				t.Parallel()
				var p *plant
				seen := make(chan tandem.Request, 1)
				look := func(ctx context.Context, data json.RawMessage, _ int) (json.RawMessage, error) {
					page, err := p.Store.Requests(ctx, store.Filter{Limit: 10})
					if err != nil {
						return nil, err
					}
					if len(page.Requests) == 1 {
						seen <- page.Requests[0]
					}
					return data, nil
				}
				p = start(t, func(s *setup) {
					s.url = databaseFile(t)
					s.engine.Tasks = []work.Task{{Name: "look", Class: class, Run: work.JSON(look)}}
				})
				if mode == tandem.ModeSync {
					if _, err := p.Do(t.Context(), order("look")); err != nil {
						t.Fatal(err)
					}
				} else {
					p.Settled(p.submit("look", newReceiver(t, nil).URL).ID)
				}
				if len(seen) != 1 {
					t.Fatal("the task found no row of its own")
				}
				during, after := <-seen, p.Only()
				if during.ID != after.ID || during.Mode != mode || string(during.Data) != string(after.Data) {
					t.Errorf("while it ran it found %s, %s, %s; want %s, %s, %s", during.ID, during.Mode, during.Data, after.ID,
						mode, after.Data)
				}
				if during.Status != tandem.StatusProcessing && (mode == tandem.ModeSync || during.Status != tandem.StatusPending) {
					t.Errorf("while it ran its row said %s", during.Status)
				}
			})
		}
	}
}
