package postgres

import (
	"context"
	"encoding/json"
	"slices"

	"github.com/riverqueue/river/riverdriver"

	"tandem/internal/store"
)

// insertTopic is River's topic for "a queue has work". Nodes notify it and listen to it.
const insertTopic = "river_insert"

// GetListener returns what River listens with.
func (d *fetchDriver) GetListener(p *riverdriver.GetListenenerParams) riverdriver.Listener {
	return &workListener{d.Driver.GetListener(p)}
}

// workListener receives notifications of new work and nothing else. PostgreSQL lets every role
// that may connect to a database send any notification. River also has topics that pause queues,
// cancel jobs and end a leadership; tandem uses none of them, so no node listens to them.
type workListener struct{ riverdriver.Listener }

// Listen subscribes to new work. It ignores River's other topics.
func (l *workListener) Listen(ctx context.Context, topic string) error {
	if topic != insertTopic {
		return nil
	}
	return l.Listener.Listen(ctx, topic)
}

// Unlisten ends what Listen began.
func (l *workListener) Unlisten(ctx context.Context, topic string) error {
	if topic != insertTopic {
		return nil
	}
	return l.Listener.Unlisten(ctx, topic)
}

// WaitForNotification returns the next notification of work in one of our queues. It drops the
// others, which River would log as errors.
func (l *workListener) WaitForNotification(ctx context.Context) (*riverdriver.Notification, error) {
	for {
		n, err := l.Listener.WaitForNotification(ctx)
		if err != nil {
			return nil, err
		}
		var payload struct {
			Queue store.Lane `json:"queue"`
		}
		if n.Topic == insertTopic && json.Unmarshal([]byte(n.Payload), &payload) == nil &&
			slices.Contains(store.Lanes, payload.Queue) {
			return n, nil
		}
	}
}
