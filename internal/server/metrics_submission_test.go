package server_test

import (
	"context"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"tandem/internal/submissions"
)

// TestMetricsOfTheSubmissionLog: lines that nobody writes fill the buffer, and those beyond it are seen to be dropped.
func TestMetricsOfTheSubmissionLog(t *testing.T) {
	t.Parallel()
	log, err := submissions.OpenLog(submissions.LogConfig{Path: filepath.Join(t.TempDir(), "submissions.log"), Buffer: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	svc := start(t, func(s *setup) { s.sample.Lines = log })
	for range 5 {
		if a := svc.post("/api/submit", ada); a.status != http.StatusOK {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	got := scrape(t, svc)
	for name, want := range map[string]float64{
		`tandem_submission_log_lines_total{outcome="dropped"}`: 3,
		`tandem_submission_log_lines_total{outcome="written"}`: 0,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
	var figures struct {
		Log map[string]int `json:"submission_log"`
	}
	svc.get("/api/stats").decode(t, &figures)
	if figures.Log["lines_dropped"] != 3 || figures.Log["lines_written"] != 0 || len(figures.Log) != 2 {
		t.Errorf("/api/stats: %v", figures.Log)
	}
}

// TestMetricsInFlight counts those who wait for an answer, and the scrape.
func TestMetricsInFlight(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	var callers sync.WaitGroup
	for range 3 {
		callers.Go(func() {
			request, err := http.NewRequestWithContext(ctx, http.MethodPost, svc.URL+"/sync", strings.NewReader(`{"data":{"a":1},"task":"stuck"}`))
			if err != nil {
				t.Error(err)
				return
			}
			request.Header.Set("Content-Type", "application/json")
			if response, err := svc.Client().Do(request); err == nil {
				response.Body.Close()
				t.Errorf("answered %s", response.Status)
			}
		})
	}
	inFlight := func() float64 { return scrape(t, svc)["tandem_http_requests_in_flight"] }
	svc.until("three and the scrape are under way", func() bool { return inFlight() == 4 })
	leave()
	callers.Wait()
	svc.until("all but the scrape have left", func() bool { return inFlight() == 1 })
}
