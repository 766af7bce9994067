package submissions

import (
	"context"
	"encoding/json"
	"time"

	"tandem/internal/egress"
	"tandem/internal/engine"
	"tandem/internal/server"
)

// Batch is some submissions of nobody in particular.
type Batch struct {
	ID   string
	Data []json.RawMessage
}

// Submit saves submissions and passes them on.
func (a *App) Submit(e *engine.Engine, b Batch) ([]engine.Run, error) {
	return a.submit(e, batch{id: b.ID, data: b.Data})
}

// CallTime is how long the call of a run took.
func CallTime(run *engine.Run) time.Duration { return callTime(run) }

// Simulate makes one call of a simulator.
func Simulate(ctx context.Context, x External) egress.Result { return x.simulate(ctx) }

// ParseNames reads a submission, or a batch of them, and returns all names; ok is false if it is no object.
func ParseNames(body string, batch bool) (names []string, ok bool, err error) {
	found, ok, err := server.ParseObject([]byte(body), "firstName", "lastName", "submissions")
	if err != nil || !ok {
		return nil, false, err
	}
	people := make([]person, 1)
	if batch {
		if people, err = peopleOf(found["submissions"]); err != nil {
			return nil, true, err
		}
	} else if p, wrong := personOf(found, "body."); wrong == nil {
		people[0] = p
	} else {
		return nil, true, server.Invalid(wrong...)
	}
	for _, p := range people {
		names = append(names, p.FirstName, p.LastName)
	}
	return names, true, nil
}
