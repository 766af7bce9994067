package server_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tandem"
	"tandem/internal/egress"
	"tandem/internal/store"
	"tandem/internal/submissions"
)

// wireSubmission is an answer, or an entry of a list, as a client reads it.
type wireSubmission struct {
	SubmissionID   string        `json:"submissionId"`
	FirstName      string        `json:"firstName"`
	LastName       string        `json:"lastName"`
	Message        string        `json:"message"`
	Timestamp      time.Time     `json:"timestamp"`
	ProcessingTime float64       `json:"processingTime"`
	External       string        `json:"external"`
	Status         tandem.Status `json:"status"`
	BatchID        string        `json:"batch_id"`
}

type wireBatch struct {
	Total          int              `json:"total_processed"`
	ProcessingTime float64          `json:"processing_time"`
	Results        []wireSubmission `json:"results"`
	BatchID        string           `json:"batch_id"`
}

type wireList struct {
	Submissions []wireSubmission `json:"submissions"`
	Count       int              `json:"count"`
	Total       int              `json:"total"`
	Limit       int              `json:"limit"`
	Offset      int              `json:"offset"`
	HasMore     bool             `json:"has_more"`
}

const ada = `{"firstName":"Ada","lastName":"Lovelace"}`

// batchOf is the body of a batch of n.
func batchOf(n int) string {
	var entries []string
	for i := range n {
		entries = append(entries, fmt.Sprintf(`{"firstName":"Ada","lastName":"the %dth"}`, i))
	}
	return `{"submissions":[` + strings.Join(entries, ",") + `]}`
}

func TestSubmit(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	before := time.Now().Add(-time.Second)
	a := svc.post("/api/submit",
		`{"firstName":"  Ada\u00a0","lastName":"Lovelace","nickname":"unknown members are ignored"}`)
	if a.status != http.StatusOK || a.header.Get("Cache-Control") != "no-store" {
		t.Fatalf("%d %s", a.status, a.body)
	}
	var got wireSubmission
	a.decode(t, &got)
	if got.FirstName != "Ada" || got.LastName != "Lovelace" || got.External != "confirmed" ||
		got.Timestamp.Before(before) || got.ProcessingTime <= 0 ||
		got.ProcessingTime > 10 || got.Message != "Thank you, Ada Lovelace: your submission is saved and confirmed." {
		t.Errorf("%+v", got)
	}
	var r tandem.Request
	svc.get("/requests/"+got.SubmissionID).decode(t, &r)
	if r.Task != submissions.Task || r.Mode != tandem.ModeSync || r.Status != tandem.StatusCompleted ||
		string(r.Data) != `{"firstName":"Ada","lastName":"Lovelace"}` || !r.CreatedAt.Equal(got.Timestamp) {
		t.Errorf("in the history: %+v", r)
	}
	if listed := ids(t, svc.get("/requests?task=submission")); len(listed) != 1 || listed[0] != got.SubmissionID {
		t.Errorf("listed: %v", listed)
	}
	for _, path := range []string{"/sync", "/async"} { // submissions have their own door
		a := svc.post(path, `{"data":`+ada+`,"task":"submission","callback_url":"`+svc.URL+`/test-callback"}`)
		if a.status != http.StatusUnprocessableEntity || a.problem(t).Errors[0].Location != "body.task" {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
}

func TestBatch(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	svc.post("/api/submit", ada)
	var batches []wireBatch
	for _, n := range []int{10, 1} {
		a := svc.post("/api/submit/batch", batchOf(n))
		var got wireBatch
		a.decode(t, &got)
		if a.status != http.StatusOK || got.Total != n || len(got.Results) != n ||
			!regexp.MustCompile(`^batch_[0-9a-f]{32}$`).MatchString(got.BatchID) ||
			got.ProcessingTime <= 0 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		for i, one := range got.Results {
			if one.LastName != fmt.Sprintf("the %dth", i) || one.External != "confirmed" {
				t.Errorf("result %d: %+v", i, one)
			}
		}
		batches = append(batches, got)
	}
	for i, batch := range batches {
		var list wireList
		svc.get("/api/submissions?batch_id="+batch.BatchID).decode(t, &list)
		if want := []int{10, 1}[i]; list.Count != want || list.Total != want || list.HasMore || list.Limit != 100 {
			t.Fatalf("%+v", list)
		}
		for i, one := range list.Submissions { // newest first
			want := batch.Results[len(batch.Results)-1-i]
			if one.SubmissionID != want.SubmissionID || one.LastName != want.LastName || one.BatchID != batch.BatchID ||
				one.Status != tandem.StatusCompleted {
				t.Errorf("entry %d: %+v, want %+v", i, one, want)
			}
		}
	}
	for query, want := range map[string]wireList{
		"limit=4":                      {Count: 4, Total: 12, Limit: 4, HasMore: true},
		"limit=4&offset=8":             {Count: 4, Total: 12, Limit: 4, Offset: 8},
		"limit=4&offset=7":             {Count: 4, Total: 12, Limit: 4, Offset: 7, HasMore: true},
		"offset=12":                    {Total: 12, Limit: 100, Offset: 12},
		"batch_id=batch_0":             {Limit: 100},
		"limit=4&batch_id=":            {},
		"limit=4&offset=6&batch_id=@":  {Count: 4, Total: 10, Limit: 4, Offset: 6},
		"limit=4&offset=5&batch_id=@":  {Count: 4, Total: 10, Limit: 4, Offset: 5, HasMore: true},
		"limit=4&offset=11&batch_id=@": {Total: 10, Limit: 4, Offset: 11},
	} {
		a := svc.get("/api/submissions?" + strings.ReplaceAll(query, "@", batches[0].BatchID))
		if want.Limit == 0 {
			if p := a.problem(t); a.status != http.StatusUnprocessableEntity || p.Errors[0].Location != "query.batch_id" {
				t.Errorf("%s: %d %s", query, a.status, a.body)
			}
			continue
		}
		var got wireList
		a.decode(t, &got)
		if len(got.Submissions) != want.Count {
			t.Errorf("%s: %d submissions", query, len(got.Submissions))
		}
		got.Submissions = nil
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", query, diff)
		}
	}
	for query, location := range map[string]string{
		"limit=0": "query.limit", "limit=1001": "query.limit", "offset=-1": "query.offset", "mode=sync": "query.mode",
		"cursor=x":                            "query.cursor",
		"batch_id=" + strings.Repeat("x", 65): "query.batch_id", "batch_id=a&batch_id=b": "query.batch_id",
		"batch_id=%00": "query.batch_id", "batch_id=a%ff": "query.batch_id",
	} {
		a := svc.get("/api/submissions?" + query)
		if a.status != http.StatusUnprocessableEntity || a.problem(t).Errors[0].Location != location {
			t.Errorf("%s: %d %s", query, a.status, a.body)
		}
	}
}

// What may be a name, and what not, at the borders of each rule.
func TestNames(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	family := "\U0001F468\u200d\U0001F469\u200d\U0001F467\u200d\U0001F466" // one character, seven code points
	for name, test := range map[string]struct {
		given    string // JSON
		kept     string
		expected string // what is wrong with it
	}{
		"one character":           {`"A"`, "A", ""},
		"50 characters":           {quoted(strings.Repeat("x", 50)), strings.Repeat("x", 50), ""},
		"51 characters":           {quoted(strings.Repeat("x", 51)), "", "must have at most 50 characters"},
		"50 and space around it":  {quoted(" \u2003" + strings.Repeat("x", 50) + "  "), strings.Repeat("x", 50), ""},
		"50 with combining marks": {quoted(strings.Repeat("e\u0301", 50)), strings.Repeat("e\u0301", 50), ""},
		"51 with combining marks": {quoted(strings.Repeat("e\u0301", 51)), "", "must have at most 50 characters"},
		"50 families":             {quoted(strings.Repeat(family, 50)), strings.Repeat(family, 50), ""},
		"50 flags": {quoted(strings.Repeat("\U0001F1E9\U0001F1EA", 50)),
			strings.Repeat("\U0001F1E9\U0001F1EA", 50), ""},
		"51 flags": {quoted(strings.Repeat("\U0001F1E9\U0001F1EA", 51)), "",
			"must have at most 50 characters"},
		"one with many marks":     {quoted("a" + strings.Repeat("\u0301", 499)), "a" + strings.Repeat("\u0301", 499), ""},
		"one with too many marks": {quoted("a" + strings.Repeat("\u0301", 500)), "", "must have at most 500 code points"},
		"right to left": {quoted("\u05d0\u05d3\u05d4 \u0628\u0646\u062a"),
			"\u05d0\u05d3\u05d4 \u0628\u0646\u062a", ""},
		"marks of direction":          {quoted("\u200fAda\u200f"), "\u200fAda\u200f", ""},
		"scripts with conjuncts":      {quoted("\u0915\u094d\u0937\u093f"), "\u0915\u094d\u0937\u093f", ""},
		"escaped":                     {`"\u0041d\u0061"`, "Ada", ""},
		"an escaped emoji":            {`"\ud83d\ude00"`, "\U0001F600", ""},
		"markup":                      {`"<b>&'\""`, `<b>&'"`, ""},
		"blank":                       {`"   "`, "", "must not be blank"},
		"empty":                       {`""`, "", "must not be blank"},
		"blank in other ways":         {quoted("\u00a0\u2003\u3000"), "", "must not be blank"},
		"nothing that can be seen":    {quoted("\u200b\u200d\ufeff"), "", "must not be blank"},
		"a mark alone":                {quoted("\u0301"), "", "must not be blank"},
		"letters that fill space":     {quoted("\u3164\u115f\u1160\uffa0"), "", "must not be blank"},
		"a neighbour of theirs":       {quoted("\u3163"), "\u3163", ""},
		"an empty Braille cell":       {quoted("\u2800"), "", "must not be blank"},
		"its neighbour":               {quoted("\u2801"), "\u2801", ""},
		"a new line in it":            {`"A\nB"`, "", "must not contain control characters"},
		"a new line after it":         {`"A\n"`, "", "must not contain control characters"},
		"NUL":                         {`"A\u0000B"`, "", "must not contain control characters"},
		"an escape sequence":          {`"\u001b[31mred"`, "", "must not contain control characters"},
		"DEL":                         {quoted("A\u007fB"), "", "must not contain control characters"},
		"a C1 control":                {quoted("A\u0085B"), "", "must not contain control characters"},
		"the neighbour of C1":         {quoted("A\u00a1B"), "A\u00a1B", ""},
		"a line separator":            {quoted("A\u2028B"), "", "must not contain control characters"},
		"a number":                    {`1815`, "", "must be a string"},
		"null":                        {`null`, "", "is required"},
		"a list":                      {`["Ada"]`, "", "must be a string"},
		"an object":                   {`{"first":"Ada"}`, "", "must be a string"},
		"a boolean":                   {`true`, "", "must be a string"},
		"invisible beside what shows": {quoted("A\u200b"), "A\u200b", ""},
	} {
		for field, body := range map[string]string{
			"firstName": `{"firstName":` + test.given + `,"lastName":"L"}`,
			"lastName":  `{"lastName":` + test.given + `,"firstName":"F"}`,
		} {
			a := svc.post("/api/submit", body)
			if test.expected != "" {
				p := a.problem(t)
				if a.status != http.StatusUnprocessableEntity || p.Code != tandem.CodeValidation || len(p.Errors) != 1 ||
					p.Errors[0].Location != "body."+field || p.Errors[0].Message != test.expected {
					t.Errorf("%s as %s: %d %s", name, field, a.status, a.body)
				}
				continue
			}
			var got wireSubmission
			a.decode(t, &got)
			if kept := map[string]string{"firstName": got.FirstName,
				"lastName": got.LastName}[field]; a.status != http.StatusOK || kept != test.kept {
				t.Errorf("%s as %s: %d %s", name, field, a.status, a.body)
			}
			var listed wireList
			svc.get("/api/submissions?limit=1").decode(t, &listed)
			if diff := cmp.Diff([2]string{got.FirstName, got.LastName},
				[2]string{listed.Submissions[0].FirstName, listed.Submissions[0].LastName}); diff != "" {
				t.Errorf("%s as %s, listed (-answered +listed):\n%s", name, field, diff)
			}
		}
	}
}

func quoted(text string) string {
	encoded, err := json.Marshal(text)
	if err != nil {
		panic(err)
	}
	return string(encoded)
}

func TestBadSubmissions(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	one := func(body string) string { return `{"submissions":[` + body + `]}` }
	nine := strings.TrimSuffix(strings.TrimPrefix(batchOf(9), `{"submissions":[`), `]}`)
	for _, test := range []struct {
		path, body string
		status     int
		code       tandem.Code
		locations  []string
	}{
		{"/api/submit", ``, 400, tandem.CodeInvalidJSON, nil},
		{"/api/submit", `{"firstName":"Ada"`, 400, tandem.CodeInvalidJSON, nil},
		{"/api/submit", ada + ada, 400, tandem.CodeInvalidJSON, nil},
		{"/api/submit", `{"firstName":"A","firstName":"B","lastName":"C"}`, 400, tandem.CodeInvalidInput, nil},
		{"/api/submit", "{\"firstName\":\"\xff\",\"lastName\":\"C\"}", 400, tandem.CodeInvalidInput, nil},
		{"/api/submit", `{"firstName":"\ud800","lastName":"C"}`, 400, tandem.CodeInvalidInput, nil},
		{"/api/submit", `[]`, 422, tandem.CodeValidation, []string{"body"}},
		{"/api/submit", `"Ada"`, 422, tandem.CodeValidation, []string{"body"}},
		{"/api/submit", `{}`, 422, tandem.CodeValidation, []string{"body.firstName", "body.lastName"}},
		{"/api/submit", `{"firstname":"Ada","lastName":"L"}`, 422, tandem.CodeValidation, []string{"body.firstName"}},
		{"/api/submit", `{"firstName":"","lastName":5}`, 422, tandem.CodeValidation,
			[]string{"body.firstName", "body.lastName"}},
		{"/api/submit", `{"firstName":"` + strings.Repeat("x", 80_000) + `"}`, 413, tandem.CodeTooLarge, nil},
		{"/api/submit/batch", `{}`, 422, tandem.CodeValidation, []string{"body.submissions"}},
		{"/api/submit/batch", ada, 422, tandem.CodeValidation, []string{"body.submissions"}},
		{"/api/submit/batch", `{"submissions":null}`, 422, tandem.CodeValidation, []string{"body.submissions"}},
		{"/api/submit/batch", `{"submissions":{"0":` + ada + `}}`, 422, tandem.CodeValidation, []string{"body.submissions"}},
		{"/api/submit/batch", `{"submissions":[]}`, 422, tandem.CodeValidation, []string{"body.submissions"}},
		{"/api/submit/batch", batchOf(11), 422, tandem.CodeValidation, []string{"body.submissions"}},
		{"/api/submit/batch", one(`5,null,[],"x"`), 422, tandem.CodeValidation,
			[]string{"body.submissions[0]", "body.submissions[1]", "body.submissions[2]", "body.submissions[3]"}},
		{"/api/submit/batch", one(nine + `,{"firstName":"Ada","lastName":" "}`), 422, tandem.CodeValidation,
			[]string{"body.submissions[9].lastName"}},
		{"/api/submit/batch", one(`{"firstName":1},` + ada + `,{}`), 422, tandem.CodeValidation,
			[]string{"body.submissions[0].firstName", "body.submissions[0].lastName", "body.submissions[2].firstName",
				"body.submissions[2].lastName"}},
		{"/api/submit/batch", one(`{"firstName":"A","firstName":"B","lastName":"C"}`), 400, tandem.CodeInvalidInput, nil},
		{"/api/submit/batch", one(ada + `,`), 400, tandem.CodeInvalidJSON, nil},
	} {
		a := svc.post(test.path, test.body)
		p := a.problem(t)
		var locations []string
		for _, fault := range p.Errors {
			locations = append(locations, fault.Location)
		}
		if diff := cmp.Diff(test.locations, locations); a.status != test.status || p.Code != test.code || diff != "" {
			t.Errorf("%s %.80s: %d %s\n%s", test.path, test.body, a.status, a.body, diff)
		}
	}
	for _, path := range []string{"/api/submit", "/api/submit/batch"} {
		if a := svc.do(http.MethodPost, path, ada, "Content-Type: text/plain"); a.status != http.StatusUnsupportedMediaType {
			t.Errorf("%s as text: %d", path, a.status)
		}
		if a := svc.get(path); a.status != http.StatusMethodNotAllowed || a.header.Get("Allow") != "POST, OPTIONS" {
			t.Errorf("GET %s: %d %v", path, a.status, a.header)
		}
	}
	var list wireList
	svc.get("/api/submissions").decode(t, &list)
	if list.Total != 0 || list.Submissions == nil || len(list.Submissions) != 0 {
		t.Errorf("something was kept of them: %+v", list)
	}
}

// Each entry of a batch counts; a batch that does not fit uses nothing up.
func TestRateLimitOfBatches(t *testing.T) {
	t.Parallel()
	svc := limitedTo(t, 20, nil)
	for i, step := range []struct {
		path, body   string
		status, left int
	}{
		{"/api/submit", ada, 200, 19},
		{"/api/submit/batch", batchOf(8), 200, 11},
		{"/api/submit/batch", batchOf(10), 200, 1},
		{"/api/submit/batch", batchOf(2), 429, 1},
		{"/api/submit/batch", batchOf(10), 429, 1},
		{"/api/submit/batch", batchOf(1), 200, 0},
		{"/api/submit/batch", batchOf(1), 429, 0},
		{"/api/submit/batch", `nonsense`, 429, 0}, // the limit comes before the body
		{"/api/submit", ada, 429, 0},
	} {
		a := svc.post(step.path, step.body)
		remaining, reset := left(t, a)
		if a.status != step.status || remaining != step.left || reset < 1 || reset > 3600 ||
			a.header.Get("RateLimit-Policy") != `"post";q=20;w=3600` {
			t.Errorf("step %d: %d %s %v", i, a.status, a.body, a.header)
		}
		if a.status == http.StatusTooManyRequests {
			if p := a.problem(t); p.RetryAfter < 1 || p.RetryAfter > 3600 ||
				a.header.Get("Retry-After") != strconv.Itoa(p.RetryAfter) {
				t.Errorf("step %d: %s %v", i, a.body, a.header)
			}
		}
	}
	var list wireList
	svc.get("/api/submissions").decode(t, &list)
	if list.Total != 20 {
		t.Errorf("%d are kept, want 20", list.Total)
	}
	if got := stats(t, svc)["rate_limiting"]; got["allowed"] != 20.0 || got["limited"] != 15.0 {
		t.Errorf("%v", got)
	}
}

func TestRateLimitSmallerThanABatch(t *testing.T) {
	t.Parallel()
	svc := limitedTo(t, 3, nil)
	a := svc.post("/api/submit/batch", batchOf(4)) // waiting would not help
	if remaining, _ := left(t, a); a.status != http.StatusUnprocessableEntity || remaining != 2 ||
		a.problem(t).Errors[0].Location != "body.submissions" {
		t.Errorf("%d %s %v", a.status, a.body, a.header)
	}
	a = svc.post("/api/submit/batch", `{"submissions":[{}]}`)
	if remaining, _ := left(t, a); a.status != http.StatusUnprocessableEntity || remaining != 1 {
		t.Errorf("bad input counts once: %d %s %v", a.status, a.body, a.header)
	}
	if a := svc.post("/api/submit/batch", batchOf(1)); a.status != http.StatusOK {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// What the answers and the figures say when the external service does not do its part.
func TestSubmitWithABadExternalService(t *testing.T) {
	t.Parallel()
	status := make(chan int, 10)
	external := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter,
		_ *http.Request) {
		w.WriteHeader(<-status)
	}))
	defer external.Close()
	client, err := egress.New(egress.Config{Policy: egress.Policy{AllowPrivate: true, AnyPort: true}})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	svc := start(t, func(s *setup) { s.sample.External = submissions.External{URL: external.URL, Client: client} })
	for code, want := range map[int]string{http.StatusOK: "confirmed", http.StatusBadGateway: "pending",
		http.StatusGone: "failed"} {
		status <- code
		a := svc.post("/api/submit", ada)
		var got wireSubmission
		a.decode(t, &got)
		if a.status != http.StatusOK || got.External != want || !strings.Contains(got.Message, "saved") ||
			(want == "confirmed") != strings.Contains(got.Message, "and confirmed") {
			t.Errorf("%d: %d %s", code, a.status, a.body)
		}
		var list wireList
		svc.get("/api/submissions?limit=1").decode(t, &list)
		if list.Submissions[0].SubmissionID != got.SubmissionID || list.Submissions[0].External != want {
			t.Errorf("%d: listed %+v", code, list)
		}
	}
	status <- http.StatusOK // the one that was pending
	svc.until("all are confirmed or given up", func() bool {
		var figures struct {
			Messages    int     `json:"total_messages"`
			Submissions int     `json:"total_submissions"`
			Average     float64 `json:"avg_processing_time"`
		}
		svc.get("/api/stats").decode(t, &figures)
		return figures.Messages == 2 && figures.Submissions == 3 && figures.Average > 0
	})
	metrics := scrape(t, svc)
	for name, want := range map[string]float64{
		`tandem_external_calls_total{outcome="delivered"}`:                                   2,
		`tandem_external_calls_total{outcome="http_error"}`:                                  1,
		`tandem_external_calls_total{outcome="gone"}`:                                        1,
		`tandem_submissions_accepted_total`:                                                  3,
		`tandem_requests_ended_total{mode="sync",outcome="completed",task="submission"}`:     2,
		`tandem_requests_ended_total{mode="sync",outcome="task_failed",task="submission"}`:   1,
		`tandem_requests_accepted_total{mode="sync"}`:                                        3,
		`tandem_http_request_duration_seconds_count{route="/api/submit",status="2xx"}`:       3,
		`tandem_http_request_duration_seconds_count{route="/api/submissions",status="2xx"}`:  3,
		`tandem_requests_ended_total{mode="async",outcome="completed",task="submission"}`:    0,
		`tandem_requests_ended_total{mode="sync",outcome="completed",task="compute"}`:        0,
		`tandem_requests_active{status="pending"}`:                                           0,
		`tandem_requests_active{status="processing"}`:                                        0,
		`tandem_callbacks_ended_total{outcome="sent"}`:                                       0,
		`tandem_http_request_duration_seconds_count{route="/api/submit/batch",status="2xx"}`: 0,
	} {
		if metrics[name] != want {
			t.Errorf("%s is %v, want %v", name, metrics[name], want)
		}
	}
}

func TestSubmitWithoutTheStore(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	svc.store.sabotage("Accept", unavailable)
	for path, body := range map[string]string{"/api/submit": ada, "/api/submit/batch": batchOf(3)} {
		if a := svc.post(path, body); a.status != http.StatusServiceUnavailable ||
			a.problem(t).Code != tandem.CodeStoreUnavailable {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	svc.store.sabotage("Unavailable", unavailable)
	var figures map[string]any
	svc.get("/api/stats").decode(t, &figures)
	if figures["status"] != "degraded" || figures["total_submissions"] != 0.0 {
		t.Errorf("%v", figures)
	}
	svc.store.sabotage("Stats", unavailable)
	svc.store.sabotage("Requests", unavailable)
	for _, path := range []string{"/api/stats", "/api/submissions"} {
		if a := svc.get(path); a.status != http.StatusServiceUnavailable {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	svc.engine.Drain()
	if a := svc.post("/api/submit", ada); a.status != http.StatusServiceUnavailable ||
		a.problem(t).Code != tandem.CodeDraining {
		t.Errorf("while draining: %d %s", a.status, a.body)
	}
}

// A batch for which there is no room is refused whole.
func TestBatchAtAFullQueue(t *testing.T) {
	t.Parallel()
	svc := start(t, func(s *setup) { s.store.MaxQueue = 5 })
	if a := svc.post("/api/submit/batch", batchOf(6)); a.status != http.StatusServiceUnavailable ||
		a.problem(t).Code != tandem.CodeQueueFull {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := svc.post("/api/submit/batch", batchOf(5)); a.status != http.StatusOK {
		t.Errorf("%d %s", a.status, a.body)
	}
	if n := len(ids(t, svc.get("/requests"))); n != 5 {
		t.Errorf("%d requests are kept, want 5", n)
	}
}

func TestHealthOfSubmissions(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	var health map[string]any
	svc.get("/health").decode(t, &health)
	if health["status"] != "healthy" || health["version"] != tandem.Version {
		t.Errorf("%v", health)
	}
}

// The reasons of a data race, if there were one, would be here: many at once, of every kind.
func TestSubmissionsTogether(t *testing.T) {
	t.Parallel()
	svc := start(t, func(s *setup) { s.engine.IOWorkers = 8 })
	const callers = 8
	done := make(chan error, callers)
	for range callers {
		go func() { // done is read below
			for range 5 {
				if a := svc.post("/api/submit/batch", batchOf(10)); a.status != http.StatusOK {
					done <- errors.New(a.body)
					return
				}
			}
			done <- nil
		}()
	}
	for range callers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	stats, err := svc.store.Stats(t.Context())
	want := store.Counted{Accepted: 400, Kept: 400, Recent: 400, Ended: 400, Work: stats.Counted.Work}
	if diff := cmp.Diff(want, stats.Counted); err != nil || diff != "" || stats.Counted.Work.Count != 400 ||
		stats.Unfinished != 0 {
		t.Errorf("%v %+v\n%s", err, stats, diff)
	}
}

// The Reporting page of the FastAPI service reads other names; it shows nothing where one is missing.
func TestTheReportingPageOfTheFastAPIServiceFindsWhatItReads(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	svc.post("/api/submit/batch", `{"submissions":[{"firstName":"Ada","lastName":"Lovelace"}]}`)
	var list struct {
		Submissions []map[string]any `json:"submissions"`
	}
	svc.get("/api/submissions").decode(t, &list)
	var figures struct {
		Latest map[string]any `json:"latest_submission"`
	}
	svc.get("/api/stats").decode(t, &figures)
	if len(list.Submissions) != 1 || figures.Latest == nil {
		t.Fatalf("%v, %v", list, figures)
	}
	for _, entry := range []map[string]any{list.Submissions[0], figures.Latest} {
		for theirs, ours := range map[string]string{
			"submission_id": "submissionId", "first_name": "firstName", "last_name": "lastName",
			"processing_time": "processingTime", "created_at": "timestamp",
		} {
			if entry[theirs] == nil || entry[theirs] != entry[ours] {
				t.Errorf("%s is %v, %s is %v", theirs, entry[theirs], ours, entry[ours])
			}
		}
		message, _ := entry["message"].(string)
		if !strings.Contains(message, "Ada Lovelace") || entry["batch_id"] == nil {
			t.Errorf("message %q, batch_id %v", message, entry["batch_id"])
		}
		if micros := entry["processingTime"].(float64) * 1e6; math.Abs(micros-math.Round(micros)) > 1e-6 {
			t.Errorf("processingTime %v has digits beyond microseconds", entry["processingTime"])
		}
	}
	if figures.Latest["id"] != figures.Latest["submissionId"] || figures.Latest["name"] != "Ada Lovelace" ||
		list.Submissions[0]["id"] != nil {
		t.Errorf("id and name: %v", figures.Latest)
	}
}
