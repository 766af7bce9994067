package server_test

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tandem"
)

func TestHistoryOfOneRequest(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	var reply struct {
		ID string `json:"request_id"`
	}
	svc.post("/sync", `{"data": {"n": 1.50, "s": "<é>"}, "task": "echo"}`).decode(t, &reply)
	a := svc.get("/requests/" + reply.ID)
	if !strings.Contains(a.body, `"input_data":{"n":1.50,"s":"<é>"}`) || !strings.Contains(a.body, `"attempts":[]`) {
		t.Errorf("%s", a.body)
	}
	for _, id := range []string{"req_00000000000000000000000000000000", "nonsense", "%00", "..%2f",
		strings.Repeat("x", 3000)} {
		if a := svc.get("/requests/" + id); a.status != http.StatusNotFound || a.problem(t).Code != tandem.CodeNotFound {
			t.Errorf("%.40s: %d %s", id, a.status, a.body)
		}
	}
}

func TestHistoryPages(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	const n = 7
	want := make([]string, n) // newest first
	for i := range n {
		var reply struct {
			ID string `json:"request_id"`
		}
		svc.post("/sync", fmt.Sprintf(`{"data":{"i":%d},"task":"echo"}`, i)).decode(t, &reply)
		want[n-1-i] = reply.ID
	}
	svc.submit(`{"data":{"a":1},"task":"sleep","callback_url":"http://127.0.0.1:9/"}`) // hidden by the filter

	var got []string
	next, pages := "/requests?mode=sync&limit=3", 0
	for ; next != "" && pages < 10; pages++ {
		a := svc.get(next)
		got = append(got, ids(t, a)...)
		next = link(t, a)
		if next != "" && (!strings.Contains(next, "mode=sync") || !strings.Contains(next, "limit=3")) {
			t.Errorf("the link loses the filter: %s", next)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" || pages != 3 {
		t.Errorf("%d pages: %s", pages, diff)
	}

	first := svc.get("/requests?mode=sync&limit=3&offset=1")
	if diff := cmp.Diff(want[1:4], ids(t, first)); diff != "" {
		t.Error(diff)
	}
	second := svc.get(link(t, first))
	if diff := cmp.Diff(want[4:7], ids(t, second)); diff != "" {
		t.Error("after an offset: " + diff)
	}
	if a := svc.get("/requests?mode=sync&status=failed"); strings.TrimSpace(a.body) != "[]" || a.header.Get("Link") != "" {
		t.Errorf("%s", a.body)
	}
}

func ids(t *testing.T, a answer) []string {
	t.Helper()
	if a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if strings.Contains(a.body, `"attempts"`) {
		t.Errorf("the list shows attempts: %s", a.body)
	}
	var requests []tandem.Request
	a.decode(t, &requests)
	var ids []string
	for _, r := range requests {
		ids = append(ids, r.ID)
	}
	return ids
}

func link(t *testing.T, a answer) string {
	t.Helper()
	text := a.header.Get("Link")
	if text == "" {
		return ""
	}
	target, ok := strings.CutSuffix(text, `>; rel="next"`)
	target, ok2 := strings.CutPrefix(target, "<")
	if !ok || !ok2 {
		t.Fatalf("Link: %s", text)
	}
	return target
}

func TestHistoryFilters(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	before := time.Now().UTC().Truncate(time.Millisecond)
	svc.post("/sync", `{"data":{"a":1},"task":"echo"}`)
	svc.post("/sync", `{"data":{"a":1},"task":"broken"}`)
	after := time.Now().UTC().Add(time.Second)
	at := func(t time.Time) string { return url.QueryEscape(t.Format(time.RFC3339Nano)) }
	zoned := url.QueryEscape(before.In(time.FixedZone("", 2*3600)).Format(time.RFC3339Nano))
	tests := []struct {
		query string
		want  int
	}{
		{"", 2},
		{"mode=sync", 2}, {"mode=async", 0},
		{"status=completed", 1}, {"status=failed", 1}, {"status=pending", 0},
		{"task=echo", 1}, {"task=broken", 1}, {"task=nothing", 0},
		{"since=" + at(before), 2}, {"since=" + zoned, 2}, {"since=" + at(after), 0},
		{"until=" + at(before), 0}, {"until=" + at(after), 2},
		{"limit=1", 1}, {"limit=1000", 2}, {"offset=1", 1}, {"offset=10000", 0},
		{"mode=sync&status=failed&task=broken", 1},
	}
	for _, tt := range tests {
		if got := ids(t, svc.get("/requests?"+tt.query)); len(got) != tt.want {
			t.Errorf("%s: %d requests, want %d", tt.query, len(got), tt.want)
		}
	}
}

func TestHistoryRefusesBadQueries(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	tests := []struct {
		query     string
		code      tandem.Code
		locations []string
	}{
		{"mode=fast", tandem.CodeValidation, []string{"query.mode"}},
		{"mode=", tandem.CodeValidation, []string{"query.mode"}},
		{"mode=SYNC", tandem.CodeValidation, []string{"query.mode"}},
		{"status=done", tandem.CodeValidation, []string{"query.status"}},
		{"task=", tandem.CodeValidation, []string{"query.task"}},
		{"task=" + strings.Repeat("x", 65), tandem.CodeValidation, []string{"query.task"}},
		{"task=%00", tandem.CodeValidation, []string{"query.task"}},
		{"task=a%00b", tandem.CodeValidation, []string{"query.task"}},
		{"task=%ff", tandem.CodeValidation, []string{"query.task"}},
		{"cursor=%00", tandem.CodeValidation, []string{"query.cursor"}},
		{"since=yesterday", tandem.CodeValidation, []string{"query.since"}},
		{"since=2026-01-31", tandem.CodeValidation, []string{"query.since"}},
		{"until=2026-01-31T12:00:00+02:00", tandem.CodeValidation, []string{"query.until"}}, // + is a space
		{"limit=0", tandem.CodeValidation, []string{"query.limit"}},
		{"limit=1001", tandem.CodeValidation, []string{"query.limit"}},
		{"limit=ten", tandem.CodeValidation, []string{"query.limit"}},
		{"limit=99999999999999999999", tandem.CodeValidation, []string{"query.limit"}},
		{"offset=-1", tandem.CodeValidation, []string{"query.offset"}},
		{"offset=10001", tandem.CodeValidation, []string{"query.offset"}},
		{"limit=1&limit=2", tandem.CodeValidation, []string{"query.limit"}},
		{"cursor=", tandem.CodeValidation, []string{"query.cursor"}},
		{"cursor=x&offset=1", tandem.CodeValidation, []string{"query.offset"}},
		{"stauts=failed", tandem.CodeValidation, []string{"query.stauts"}},
		{"mode=x&limit=0&foo=1", tandem.CodeValidation, []string{"query.foo", "query.limit", "query.mode"}},
		{"mode=%zz", tandem.CodeValidation, []string{"query"}},
		{"cursor=nonsense", tandem.CodeInvalidCursor, nil},
		{"cursor=" + strings.Repeat("x", 5000), tandem.CodeInvalidCursor, nil},
	}
	for _, tt := range tests {
		a := svc.get("/requests?" + tt.query)
		p := a.problem(t)
		var locations []string
		for _, f := range p.Errors {
			locations = append(locations, f.Location)
		}
		if diff := cmp.Diff(tt.locations, locations); p.Code != tt.code || diff != "" {
			t.Errorf("%.60s: %d %s\n%s", tt.query, a.status, a.body, diff)
		}
	}
}

func TestHistoryPageIsBounded(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	svc := start(t, func(s *setup) { s.server.MaxData = size })
	order := `{"task":"echo","data":{"a":"` + strings.Repeat("x", size-8) + `"}}` // echo keeps it twice
	const n = 10
	for range n {
		if a := svc.post("/sync", order); a.status != http.StatusOK {
			t.Fatalf("%d %.300s", a.status, a.body)
		}
	}
	checkPages(t, svc, n)
}

// The store bounds data and results; here it is the URLs that make a page too large.
func TestHistoryPageOfLongURLsIsBounded(t *testing.T) {
	t.Parallel()
	svc := start(t, func(s *setup) { s.engine.IOWorkers, s.engine.TaskTimeout = 1, time.Hour })
	order := `{"task":"stuck","data":{"a":"` + strings.Repeat("x", 7_000) + `"},"callback_url":"http://127.0.0.1:9/` +
		strings.Repeat("u", 1_900) + `"}`
	const n = 1000
	for range n {
		svc.submit(order)
	}
	checkPages(t, svc, n)
}

// checkPages follows the links through n requests in more than one page.
func checkPages(t *testing.T, svc *service, n int) {
	t.Helper()
	pages := 0
	var seen []string
	for next := "/requests?limit=1000"; next != ""; pages++ {
		a := svc.get(next)
		if len(a.body) > 8<<20 {
			t.Errorf("a page has %d bytes", len(a.body))
		}
		seen = append(seen, ids(t, a)...)
		next = link(t, a)
	}
	slices.Sort(seen)
	if got := len(slices.Compact(seen)); got != n || pages < 2 {
		t.Errorf("%d pages show %d requests, want %d", pages, got, n)
	}
}
