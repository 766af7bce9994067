package engine_test

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tandem"
	"tandem/internal/engine"
	"tandem/internal/tandemtest"
)

// into makes an engine log into log from a level on.
func into(log *tandemtest.Log, level slog.Level) func(*setup) {
	return func(config *setup) {
		config.engine.Log = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: level}))
	}
}

// TestStepsOfWork: sync and async work, and callbacks that are tried again.
func TestStepsOfWork(t *testing.T) {
	t.Parallel()
	x := newReceiver(t, func(n int, w http.ResponseWriter, _ *http.Request) {
		if n == 1 {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	var told tandemtest.Log
	p := start(t, into(&told, slog.LevelDebug))
	data := json.RawMessage(`{"n":1}`)
	done, err := p.Do(t.Context(), engine.Order{Task: "echo", Data: data, Complexity: 1})
	must(t, err)
	if diff := cmp.Diff([]string{"🚀", "✅"}, p.Marks(&told, done.ID)); diff != "" {
		t.Errorf("sync (-want +got):\n%s", diff)
	}
	_, err = p.Do(t.Context(), engine.Order{Task: "broken", Data: data, Complexity: 1})
	var failed *tandem.Error
	if !errors.As(err, &failed) {
		t.Fatalf("broken work: %v", err)
	}
	if diff := cmp.Diff([]string{"🚀", "❌"}, p.Marks(&told, failed.RequestID)); diff != "" {
		t.Errorf("sync that fails (-want +got):\n%s", diff)
	}
	sent, err := p.Submit(t.Context(), engine.Order{Task: "echo", Data: data, Complexity: 1, CallbackURL: x.URL})
	must(t, err)
	p.Await("the callback", func() bool { return p.Request(sent.ID).Status == tandem.StatusCallbackSent })
	got := p.Marks(&told, sent.ID)
	accepted := slices.Index(got, "📝") // the background may be faster than the caller's goroutine
	if accepted < 0 {
		t.Fatalf("steps %q", got)
	}
	want := []string{"🚀", "✅", "🌐", "⏳", "🌐"}
	if diff := cmp.Diff(want, slices.Delete(got, accepted, accepted+1)); diff != "" {
		t.Errorf("async (-want +got):\n%s\n%s", diff, told.String())
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
