package submissions_test

import (
	"log/slog"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tandem"
	"tandem/internal/egress"
	"tandem/internal/engine"
	"tandem/internal/store"
	"tandem/internal/submissions"
	"tandem/internal/tandemtest"
	"tandem/internal/work"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testTimeout bounds every wait of these tests, ten times over.
const testTimeout = 20 * time.Second

// plant is an engine on a real store. It runs from start to Stop.
type plant struct {
	*tandemtest.Engine

	app *submissions.App
	t   testing.TB
}

// setup is what a test may change.
type setup struct {
	engine engine.Config
	config submissions.Config
	url    string // of the store
	idle   bool   // do not start Run
}

var quiet = slog.New(slog.DiscardHandler)

// start builds a plant and runs it until the test ends or stop is called.
func start(t testing.TB, change func(*setup)) *plant {
	t.Helper()
	s := setup{
		url: ":memory:",
		engine: engine.Config{
			Secrets: []tandem.Secret{tandem.NewSecret()},
			Workers: 1, IOWorkers: 4,
			Log: quiet,
		},
	}
	if change != nil {
		change(&s)
	}
	s.config.Log = s.engine.Log
	app, err := submissions.New(s.config)
	if err != nil {
		t.Fatal(err)
	}
	s.engine.Tasks, s.engine.Observers = []work.Task{app.Task()}, []func(engine.Event){app.Observe}
	return &plant{t: t, app: app, Engine: tandemtest.StartEngine(t, tandemtest.EngineConfig{
		Engine: s.engine, Idle: s.idle,
		Egress: egress.Config{Policy: egress.Policy{AllowPrivate: true, AnyPort: true}, Log: quiet},
		Store:  store.Config{URL: s.url, Counted: submissions.Task, Log: quiet, Nodes: s.engine.Nodes},
	})}
}

// submit saves submissions and passes them on.
func (p *plant) submit(batch submissions.Batch) ([]engine.Run, error) {
	return p.app.Submit(p.Engine.Engine, batch)
}
