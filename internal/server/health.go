package server

import (
	"context"
	"net/http"
	"time"

	"tandem"
)

// readyTimeout bounds how long /readyz waits for the store.
const readyTimeout = 2 * time.Second

// Health is the answer of /healthz.
type Health struct {
	Status        string    `json:"status" enum:"healthy"`
	Timestamp     time.Time `json:"timestamp" doc:"Now, UTC"`
	Version       string    `json:"version" doc:"Of tandem" example:"0.1.0"`
	UptimeSeconds float64   `json:"uptime_seconds" minimum:"0" doc:"Since the process started"`
}

// state is the answer of /livez and /readyz.
type state struct {
	Status string `json:"status" enum:"alive,ready"`
}

// handleHealth says that the process answers, and which one it is.
func (s *server) handleHealth(*http.Request) (Health, error) {
	now := time.Now()
	return Health{"healthy", now.UTC().Truncate(time.Millisecond), tandem.Version, seconds(now.Sub(s.started))}, nil
}

// handleLive asks nobody: a process that cannot answer this is to be restarted.
func (s *server) handleLive(*http.Request) (state, error) { return state{"alive"}, nil }

// handleReady says whether new work would be accepted.
func (s *server) handleReady(r *http.Request) (state, error) {
	if s.cfg.Engine.Draining() || s.leaving() {
		return state{}, tandem.Errorf(tandem.CodeDraining,
			"The server is starting or shutting down; send new work elsewhere.")
	}
	ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
	defer cancel()
	stats, err := s.cfg.Store.Stats(ctx)
	if err == nil {
		err = stats.Unavailable
	}
	if err != nil {
		return state{}, &tandem.Error{Code: tandem.CodeStoreUnavailable, Message: "The database cannot be used.", Err: err}
	}
	return state{"ready"}, nil
}

// leaving reports whether callers had better go elsewhere, though they are still served.
func (s *server) leaving() bool {
	select {
	case <-s.cfg.Leaving:
		return true
	default:
		return false
	}
}

// seconds rounds to milliseconds: more digits would only be noise.
func seconds(d time.Duration) float64 {
	return float64(d.Round(time.Millisecond).Milliseconds()) / 1000
}
