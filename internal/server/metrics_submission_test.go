package server_test

import (
	"context"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tandem"
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
			request, err := http.NewRequestWithContext(ctx, http.MethodPost, svc.URL+"/sync",
				strings.NewReader(`{"data":{"a":1},"task":"stuck"}`))
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

func TestSubmissionStats(t *testing.T) {
	t.Parallel()
	svc := start(t, func(s *setup) {
		s.server.Debug = true
		s.sample.External = submissions.External{MinDelay: 30 * time.Millisecond, MaxDelay: 30 * time.Millisecond}
	})
	var figures map[string]any
	svc.get("/api/stats").decode(t, &figures)
	uptime := figures["uptime_seconds"].(float64)
	delete(figures, "uptime_seconds")
	want := map[string]any{
		"total_messages": 0.0, "total_submissions": 0.0, "recent_submissions": 0.0, "avg_processing_time": 0.0,
		"latest_submission": nil,
		"api_version":       tandem.Version, "status": "healthy", "debug_mode": true, "last_submission": nil,
		"submission_log": map[string]any{"lines_written": 0.0, "lines_dropped": 0.0},
	}
	if diff := cmp.Diff(want, figures); diff != "" || uptime < 0 {
		t.Errorf("before the first (-want +got):\n%s", diff)
	}
	svc.post("/sync", `{"data":{"a":1},"task":"echo"}`)
	svc.post("/api/submit/batch", batchOf(3))
	var last wireSubmission
	svc.post("/api/submit", ada).decode(t, &last)
	a := svc.get("/api/stats")
	var got struct {
		Messages int            `json:"total_messages"`
		Total    int            `json:"total_submissions"`
		Recent   int            `json:"recent_submissions"`
		Average  float64        `json:"avg_processing_time"`
		Latest   wireSubmission `json:"latest_submission"`
		Last     time.Time      `json:"last_submission"`
	}
	a.decode(t, &got)
	if got.Messages != 4 || got.Total != 4 || got.Recent != 4 || got.Average < 0.03 || got.Average > 10 ||
		got.Latest.SubmissionID != last.SubmissionID || got.Latest.FirstName != "Ada" || !got.Last.Equal(last.Timestamp) {
		t.Errorf("%s", a.body)
	}
	tag := a.header.Get("ETag")
	if a := svc.do(http.MethodGet, "/api/stats", "", "If-None-Match: "+tag); a.status != http.StatusNotModified ||
		a.header.Get("ETag") != tag {
		t.Errorf("unchanged: %d %v", a.status, a.header)
	}
	svc.post("/api/submit", ada)
	if a := svc.do(http.MethodGet, "/api/stats", "", "If-None-Match: "+tag); a.status != http.StatusOK ||
		a.header.Get("ETag") == tag {
		t.Errorf("changed: %d %v", a.status, a.header)
	}
	if other := start(t, nil).get("/api/stats").header.Get("ETag"); other == start(t,
		nil).get("/api/stats").header.Get("ETag") {
		t.Errorf("two processes give one tag, %s", other)
	}
}
