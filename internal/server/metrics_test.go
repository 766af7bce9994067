package server_test

import (
	"errors"
	"io"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"tandem"
	"tandem/internal/limit"
)

// How a scrape reads, line by line.
var (
	samples     = regexp.MustCompile(`(?m)^([a-z]\w*)(?:\{(.*)\})? (\S+)$`)
	sampleLabel = regexp.MustCompile(`(\w+)="((?:[^"\\]|\\.)*)"`)
	familyType  = regexp.MustCompile(`(?m)^# TYPE (\w+) (\w+)$`)
)

// scrape returns the values of all samples by name and labels, as they stand in the text.
func scrape(t *testing.T, svc *service) map[string]float64 {
	t.Helper()
	a := svc.get("/metrics")
	if a.status != http.StatusOK || !strings.HasPrefix(a.header.Get("Content-Type"), "text/plain; version=0.0.4") ||
		a.header.Get("Cache-Control") != "no-store" {
		t.Fatalf("%d %v", a.status, a.header)
	}
	values := map[string]float64{}
	for _, line := range samples.FindAllStringSubmatch(a.body, -1) {
		value, err := strconv.ParseFloat(line[3], 64)
		if err != nil {
			t.Fatalf("%s: %v", line[0], err)
		}
		name := line[1]
		if line[2] != "" {
			name += "{" + line[2] + "}"
		}
		values[name] = value
	}
	return values
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"demo", "production"} {
		svc := start(t, func(s *setup) { s.server.Mode = mode })
		svc.post("/sync", `{"data":{"a":1},"task":"sleep"}`)
		svc.post("/sync", `{"data":{"a":1},"task":"broken"}`)
		svc.post("/sync", `{"data":`)
		svc.get("/nowhere")
		svc.get("/nowhere/else")
		svc.do(http.MethodDelete, "/sync", "")
		id := svc.submit(`{"data":{"a":1},"task":"echo","callback_url":"` + svc.URL + `/test-callback"}`)
		svc.wait(id, func(r tandem.Request) bool { return r.Status == tandem.StatusCallbackSent })
		got := scrape(t, svc)
		for name, want := range map[string]float64{
			`tandem_requests_accepted_total{mode="sync"}`:                                  2,
			`tandem_requests_accepted_total{mode="async"}`:                                 1,
			`tandem_requests_ended_total{mode="sync",outcome="completed",task="sleep"}`:    1,
			`tandem_requests_ended_total{mode="sync",outcome="task_failed",task="broken"}`: 1,
			`tandem_requests_ended_total{mode="async",outcome="completed",task="echo"}`:    1,
			`tandem_requests_ended_total{mode="async",outcome="completed",task="compute"}`: 0,
			`tandem_requests_active{status="pending"}`:                                     0,
			`tandem_queue_jobs{lane="deliver"}`:                                            0,
			`tandem_queue_oldest_age_seconds`:                                              0,
			`tandem_queue_depth_requests`:                                                  0,
			`tandem_queue_capacity_requests`:                                               1_000_000,
			`tandem_callbacks_ended_total{outcome="sent"}`:                                 1,
			`tandem_callbacks_ended_total{outcome="failed"}`:                               0,
			`tandem_callback_attempts_total{outcome="delivered"}`:                          1,
			`tandem_callback_breakers{state="closed"}`:                                     1,
			`tandem_callback_breakers{state="open"}`:                                       0,
			`tandem_sync_response_seconds_count`:                                           2,
			`tandem_async_acceptance_seconds_count`:                                        1,
			`tandem_processing_seconds_count`:                                              3,
			`tandem_accept_to_callback_seconds_count`:                                      1,
			`tandem_http_request_duration_seconds_count{route="/sync",status="2xx"}`:       1,
			`tandem_http_request_duration_seconds_count{route="/sync",status="4xx"}`:       2,
			`tandem_http_request_duration_seconds_count{route="/sync",status="5xx"}`:       1,
			`tandem_http_request_duration_seconds_count{route="/async",status="2xx"}`:      1,
			`tandem_http_request_duration_seconds_count{route="other",status="4xx"}`:       2,
			`tandem_http_problems_total{code="INVALID_JSON"}`:                              1,
			`tandem_http_problems_total{code="NOT_FOUND"}`:                                 2,
			`tandem_http_problems_total{code="INTERNAL"}`:                                  0,
			`tandem_callback_oldest_undelivered_seconds`:                                   0,
			`tandem_store_available`:                                                       1,
			`tandem_store_commits_failed_total`:                                            0,
		} {
			if value, there := got[name]; !there || value != want {
				t.Errorf("%s mode: %s is %v (there: %t), want %v", mode, name, value, there, want)
			}
		}
		commits, writes := got["tandem_store_commit_seconds_count"], got["tandem_store_commit_writes_sum"]
		// Two rows and two results of sync requests, and three commits of the async one, at least.
		if commits < 5 || writes < 7 || commits > writes || got["tandem_store_commit_writes_count"] != commits ||
			got["tandem_store_commit_seconds_sum"] <= 0 {
			t.Errorf("%s mode: %v commits of %v writes", mode, commits, writes)
		}
		if fast := got[`tandem_sync_response_seconds_bucket{le="0.025"}`]; fast > 1 {
			t.Errorf("%s mode: %v sync answers within 25 ms, one of which slept for 50", mode, fast)
		}
		if got["go_goroutines"] < 1 {
			t.Errorf("%s mode: no figures of the Go runtime", mode)
		}
	}
}

// What waits is seen.
func TestMetricsOfAQueue(t *testing.T) {
	t.Parallel()
	svc := start(t, func(s *setup) { s.engine.IOWorkers = 1 })
	for range 3 {
		svc.submit(`{"data":{"a":1},"task":"stuck","callback_url":"` + svc.URL + `/test-callback"}`)
	}
	var got map[string]float64
	svc.until("one of them is on record as running", func() bool {
		got = scrape(t, svc)
		return got[`tandem_requests_active{status="processing"}`] == 1
	})
	if got[`tandem_queue_jobs{lane="io"}`] != 3 || got[`tandem_queue_jobs{lane="cpu"}`] != 0 ||
		got["tandem_queue_depth_requests"] != 3 ||
		got[`tandem_requests_active{status="pending"}`] != 2 {
		t.Errorf("three requests for one slot: %v", got)
	}
	if age := got["tandem_queue_oldest_age_seconds"]; age <= 0 || age > patience.Seconds() {
		t.Errorf("the oldest has been due for %v s", age)
	}
}

func TestMetricsOfTheRateLimit(t *testing.T) {
	t.Parallel()
	svc := start(t, func(s *setup) { s.server.RateLimit = limit.Quota{Calls: 2, Window: time.Hour} })
	for range 5 {
		svc.post("/sync", `{"data":{"a":1},"task":"echo"}`)
	}
	got := scrape(t, svc)
	for name, want := range map[string]float64{
		`tandem_rate_limit_requests_total{policy="post",verdict="allowed"}`:      2,
		`tandem_rate_limit_requests_total{policy="get",verdict="allowed"}`:       0,
		`tandem_rate_limit_requests_total{policy="post",verdict="limited"}`:      3,
		`tandem_rate_limit_tracked_clients{policy="post"}`:                       1,
		`tandem_http_request_duration_seconds_count{route="/sync",status="4xx"}`: 3,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
	if got[`tandem_rate_limit_capacity_clients{policy="post"}`] < 1000 {
		t.Errorf("room for %v clients", got[`tandem_rate_limit_capacity_clients{policy="post"}`])
	}
	free := scrape(t, start(t, nil))
	if capacity, there := free[`tandem_rate_limit_capacity_clients{policy="post"}`]; !there || capacity != 0 {
		t.Errorf("without a limit: room for %v clients (there: %t)", capacity, there)
	}
}

// When the store is away, what does not depend on it is shown all the same.
func TestMetricsWithoutTheStore(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	svc.store.sabotage("Unavailable", unavailable)
	svc.store.sabotage("Undelivered", unavailable)
	got := scrape(t, svc)
	if got["tandem_store_available"] != 0 || got["tandem_queue_capacity_requests"] == 0 {
		t.Errorf("a store that takes no writes: %v", got)
	}
	if age, there := got["tandem_callback_oldest_undelivered_seconds"]; there {
		t.Errorf("nobody knows which callbacks wait, but the oldest is said to wait for %v s", age)
	}
	if a := svc.get("/stats"); a.status != http.StatusOK {
		t.Errorf("/stats answers %d", a.status)
	}
	svc.store.sabotage("Stats", func() error { return errors.New("secret path") })
	got = scrape(t, svc)
	if available, there := got["tandem_store_available"]; !there || available != 0 {
		t.Errorf("available: %v (there: %t)", available, there)
	}
	if _, there := got["tandem_queue_capacity_requests"]; there {
		t.Error("figures of the store are shown although it cannot be read")
	}
	if _, there := got["tandem_processing_seconds_count"]; !there {
		t.Error("the engine's figures are missing")
	}
}

// TestMetricsAreBounded: whatever callers send, they do not add to the labels.
func TestMetricsAreBounded(t *testing.T) {
	t.Parallel()
	svc := start(t, func(s *setup) { s.server.CORSOrigins = []string{"https://app.example.com"} })
	provoke := func(text string) {
		svc.get("/" + text)
		svc.get("/requests/" + text)
		svc.get("/problems/" + text)
		svc.do(strings.ToUpper(text), "/stats", "")
		svc.do(http.MethodOptions, "/"+text, "", "Origin: https://app.example.com", "Access-Control-Request-Method: POST")
		svc.post("/sync", `{"data":{"a":1},"task":"`+text+`"}`)
	}
	provoke("first")
	svc.until("a scrape is counted", func() bool {
		return scrape(t, svc)[`tandem_http_request_duration_seconds_count{route="/metrics",status="2xx"}`] > 0
	})
	before := slices.Sorted(maps.Keys(scrape(t, svc)))
	provoke("second")
	if diff := cmp.Diff(before, slices.Sorted(maps.Keys(scrape(t, svc)))); diff != "" {
		t.Errorf("new series:\n%s", diff)
	}
}

// TestMetricsAreDocumented compares docs/operations.md with what is exposed, both
// ways, and lets promlint look at it.
func TestMetricsAreDocumented(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{} // :: name → type and labels
	for _, row := range regexp.MustCompile("(?m)^\\| `(tandem_\\w+)` \\| (\\w+) \\|(.*?)\\| "+
		"(.{10,}) \\|$").FindAllStringSubmatch(string(text), -1) {
		if documented[row[1]] != "" {
			t.Errorf("%s is documented twice", row[1])
		}
		documented[row[1]] = row[2] + " " + strings.TrimSpace(strings.ReplaceAll(row[3], "`", ""))
	}
	svc := start(t, func(s *setup) { s.engine.Tasks = nil })
	svc.get("/healthz")
	body := svc.get("/metrics").body
	if diff := cmp.Diff(exposed(body), documented); diff != "" {
		t.Errorf("docs/operations.md (-exposed +documented):\n%s", diff)
	}
	for _, name := range regexp.MustCompile(`\btandem_\w+`).FindAllString(string(text), -1) {
		if family := regexp.MustCompile(`_(bucket|count|sum)$`).ReplaceAllString(name, ""); documented[family] == "" {
			t.Errorf("docs/operations.md mentions %s, which is not in its table", name)
		}
	}
	problems, err := promlint.New(strings.NewReader(body)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// exposed returns our metrics in a scrape: name → type and labels.
func exposed(body string) map[string]string {
	families := map[string]string{}
	for _, family := range familyType.FindAllStringSubmatch(body, -1) {
		name, kind := family[1], family[2]
		if !strings.HasPrefix(name, "tandem_") {
			continue
		}
		labels := map[string]bool{}
		for _, line := range samples.FindAllStringSubmatch(body, -1) {
			if line[1] == name || kind == "histogram" && line[1] == name+"_bucket" {
				for _, label := range sampleLabel.FindAllStringSubmatch(line[2], -1) {
					labels[label[1]] = true
				}
			}
		}
		delete(labels, "le")
		families[name] = kind + " " + strings.Join(slices.Sorted(maps.Keys(labels)), ", ")
	}
	return families
}

// A scraper that asks for more than text gets it.
func TestMetricsFormats(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, svc.URL+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Accept",
		"application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited")
	request.Header.Set("Accept-Encoding", "gzip")
	response, err := svc.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		t.Fatal(err)
	}
	kind := response.Header.Get("Content-Type")
	if !strings.HasPrefix(kind, "application/vnd.google.protobuf") || response.Header.Get("Content-Encoding") != "gzip" {
		t.Errorf("%v", response.Header)
	}
	if a := svc.do(http.MethodHead, "/metrics", ""); a.status != http.StatusOK || a.body != "" {
		t.Errorf("HEAD: %d %q", a.status, a.body)
	}
}
