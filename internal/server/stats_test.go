package server_test

import (
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tandem"
)

func TestStats(t *testing.T) {
	t.Parallel()
	svc := start(t, func(s *setup) { s.server.Mode = "production" })
	empty := stats(t, svc)
	if empty["request_statistics"]["success_rate"] != 100.0 || empty["callback_service"]["delivery_rate"] != 100.0 {
		t.Errorf("before anything happened: %v", empty)
	}

	svc.post("/sync", `{"data":{"a":1},"task":"sleep"}`)
	svc.post("/sync", `{"data":{"a":1},"task":"broken"}`)
	svc.post("/sync", `{"data":`)
	id := svc.submit(`{"data":{"a":1},"task":"echo","callback_url":"` + svc.URL + `/test-callback"}`)
	svc.wait(id, func(r tandem.Request) bool { return r.Status == tandem.StatusCallbackSent })

	got := stats(t, svc)
	want := map[string]map[string]any{
		"request_statistics": {
			"total_requests": 3.0, "sync_requests": 2.0, "async_requests": 1.0, "completed_requests": 2.0,
			"failed_requests":  1.0,
			"pending_requests": 0.0, "processing_requests": 0.0, "callback_sent": 1.0, "callback_failed": 0.0,
			"success_rate": 200.0 / 3,
		},
		"callback_service": {"delivery_rate": 100.0},
		"rate_limiting":    {"enabled": false},
		"errors":           {"task_failed": 1.0, "TASK_FAILED": 1.0, "INVALID_JSON": 1.0},
		"queue":            {"depth": 0.0, "oldest_age_seconds": 0.0, "capacity": 1_000_000.0},
		"system":           {"mode": "production", "version": tandem.Version},
	}
	for group, members := range want {
		for name, value := range members {
			if got[group][name] != value {
				t.Errorf("%s.%s is %v, want %v", group, name, got[group][name], value)
			}
		}
	}
	if ms := got["request_statistics"]["sync_avg_processing_time_ms"].(float64); ms < 20 || ms > 5000 {
		t.Errorf("sync_avg_processing_time_ms %v after sleeping 50 ms and failing at once", ms)
	}
	if rate := got["request_statistics"]["requests_per_second"].(float64); rate <= 0 {
		t.Errorf("requests_per_second %v", rate)
	}
	for _, name := range []string{"sync_response", "async_acceptance", "processing", "accept_to_callback"} {
		p := got["latency"][name].(map[string]any)
		if p["p99"].(float64) <= 0 || p["p99"].(float64) < p["p50"].(float64) || // a task that fails at once takes 0.000 ms
			p["count"].(float64) < 1 {
			t.Errorf("latency.%s: %v", name, p)
		}
	}
	domains := got["callback_service"]["domains"].(map[string]any)
	host := strings.TrimPrefix(svc.URL, "http://")
	if d, ok := domains[host].(map[string]any); !ok || d["host"] != "127.0.0.1" || d["state"] != "closed" ||
		d["failure_count"] != 0.0 || d["retry_at"] != nil {
		t.Errorf("domains: %v", domains)
	}
	if global := got["callback_service"]["global_stats"].(map[string]any); global["sent"] != 1.0 ||
		global["destinations"] != 1.0 {
		t.Errorf("global_stats: %v", global)
	}
	if attempts := got["callback_service"]["attempts"].(map[string]any); attempts["delivered"] != 1.0 {
		t.Errorf("attempts: %v", attempts)
	}
	if memory := got["system"]["memory"].(map[string]any); memory["heap_bytes"].(float64) < 1e5 ||
		memory["total_bytes"].(float64) < memory["heap_bytes"].(float64) {
		t.Errorf("memory: %v", memory)
	}
}

func stats(t *testing.T, svc *service) map[string]map[string]any {
	t.Helper()
	a := svc.get("/stats")
	if a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	var got map[string]map[string]any
	a.decode(t, &got)
	return got
}

func TestStatsShowTroubleWithADestination(t *testing.T) {
	t.Parallel()
	svc := start(t, func(s *setup) { s.engine.Retry.Attempts = 1 })
	id := svc.submit(`{"data":{"a":1},"task":"echo","callback_url":"http://127.0.0.1:1/"}`)
	r := svc.wait(id, func(r tandem.Request) bool { return r.Status == tandem.StatusCallbackFailed })
	if len(r.Attempts) != 1 || r.Attempts[0].Outcome != tandem.OutcomeConnect {
		t.Errorf("%+v", r)
	}
	got := stats(t, svc)
	d := got["callback_service"]["domains"].(map[string]any)["127.0.0.1:1"].(map[string]any)
	if d["failure_count"] != 1.0 || d["last_failure_time"] == nil || got["callback_service"]["delivery_rate"] != 0.0 {
		t.Errorf("%v", got["callback_service"])
	}
}

// What waits for a destination is shown with it, with how long it has waited, also by a process that
// has never called it.
func TestStatsShowWhatWaitsForADestination(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tandem.db")
	var ended time.Time
	check := func(t *testing.T, svc *service) {
		t.Helper()
		d, _ := stats(t, svc)["callback_service"]["domains"].(map[string]any)["127.0.0.1:1"].(map[string]any)
		oldest, _ := d["oldest_undelivered_at"].(string)
		at, err := time.Parse(time.RFC3339Nano, oldest)
		if d["host"] != "127.0.0.1" || d["scheme"] != "http" || d["undelivered"] != 2.0 ||
			d["undelivered_more"] != false || err != nil || !at.Equal(ended) {
			t.Errorf("two callbacks wait, the older one since %v: %v", ended, d)
		}
		age := scrape(t, svc)["tandem_callback_oldest_undelivered_seconds"]
		if age <= 0 || age > time.Since(ended).Seconds() {
			t.Errorf("the oldest callback has waited for %v s, want about %v", age, time.Since(ended))
		}
	}
	run := func(name string, test func(t *testing.T, svc *service)) {
		t.Run(name, func(t *testing.T) {
			test(t, start(t, func(s *setup) {
				s.store.URL = path
				s.engine.Retry.Backoff = time.Hour
			}))
		})
	}
	run("by the one that called", func(t *testing.T, svc *service) { //nolint:thelper // it is the test
		for range 2 {
			id := svc.submit(`{"data":{"a":1},"task":"echo","callback_url":"http://127.0.0.1:1/"}`)
			r := svc.wait(id, func(r tandem.Request) bool { return len(r.Attempts) == 1 })
			if ended.IsZero() {
				ended = r.CompletedAt
			}
		}
		check(t, svc)
	})
	run("after a restart", check)
}

func TestHealth(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	var h struct {
		Status    string    `json:"status"`
		Timestamp time.Time `json:"timestamp"`
		Version   string    `json:"version"`
		Uptime    float64   `json:"uptime_seconds"`
	}
	svc.get("/healthz").decode(t, &h)
	if h.Status != "healthy" || h.Version != tandem.Version || time.Since(h.Timestamp).Abs() > time.Minute ||
		h.Uptime < 0 || h.Uptime > 60 {
		t.Errorf("%+v", h)
	}
	for path, want := range map[string]string{"/livez": `{"status":"alive"}`, "/readyz": `{"status":"ready"}`} {
		if a := svc.get(path); a.status != http.StatusOK || strings.TrimSpace(a.body) != want {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
}
