package app_test

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tandem/internal/app"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestPresetsAreValid: a mode works without any other setting.
func TestPresetsAreValid(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{app.Demo, app.Production} {
		if err := app.Preset(mode).Validate(); err != nil {
			t.Errorf("%s: %v", mode, err)
		}
	}
}

// TestOpenLeavesNothingBehind: after each error the same database can be opened, and in the end the service runs.
func TestOpenLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	cfg := app.Preset(app.Production)
	cfg.Listen, cfg.DB = "127.0.0.1:0", filepath.Join(t.TempDir(), "tandem.db")
	if _, err := app.Open(t.Context(), cfg); !errors.Is(err, app.ErrNoKeys) {
		t.Errorf("without keys: %v, want ErrNoKeys", err)
	}
	cfg.NoAuth = true
	bad := cfg
	bad.SubmissionLog = t.TempDir()
	if _, err := app.Open(t.Context(), bad); err == nil {
		t.Error("a folder was taken as submission log")
	}
	bad = cfg
	bad.TaskTimeout = 0
	if _, err := app.Open(t.Context(), bad); !isError(err, true) {
		t.Errorf("without task timeout: %v, want one about the setting", err)
	}
	service, err := app.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	bad.TaskTimeout, bad.Listen = cfg.TaskTimeout, service.Addr.String()
	if _, err := app.Open(t.Context(), bad); !isError(err, false) {
		t.Errorf("at a port in use: %v, want an Error", err)
	}
	halt := make(chan struct{})
	ended := make(chan error, 1)
	go func() { ended <- service.Run(t.Context(), halt) }()
	<-service.Ready()
	close(halt)
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("halted, and it runs on")
	}
}

func isError(err error, invalid bool) bool {
	ours, ok := errors.AsType[*app.Error](err)
	return ok && ours.Invalid == invalid
}
