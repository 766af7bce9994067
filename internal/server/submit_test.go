package server_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tandem"
	"tandem/internal/server"
	"tandem/internal/work"
)

func TestSyncAnswersWithTheResult(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	a := svc.post("/sync", `{"data":{"user":1},"task":"echo"}`)
	if a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	var reply struct {
		ID        string          `json:"request_id"`
		Result    json.RawMessage `json:"result"`
		TookMS    float64         `json:"processing_time_ms"`
		Timestamp time.Time       `json:"timestamp"`
	}
	a.decode(t, &reply)
	if string(reply.Result) != `{"user":1}` || reply.TookMS < 0 || reply.Timestamp.Location() != time.UTC {
		t.Errorf("%s", a.body)
	}
	if _, err := tandem.IDTime(reply.ID); err != nil {
		t.Error(err)
	}
	r := svc.wait(reply.ID, func(tandem.Request) bool { return true })
	if r.Status != tandem.StatusCompleted || r.Mode != tandem.ModeSync || !r.CompletedAt.Equal(reply.Timestamp) {
		t.Errorf("the history says %+v of %s", r, a.body)
	}
	if a.header.Get("Cache-Control") != "no-store" {
		t.Errorf("Cache-Control %q", a.header.Get("Cache-Control"))
	}
}

func TestAsyncAcceptsAndCallsBack(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	a := svc.post("/async", `{"data":{"user":1},"complexity":3,"task":"echo","callback_url":"`+svc.URL+`/test-callback"}`)
	var reply map[string]string
	a.decode(t, &reply)
	id := reply["request_id"]
	want := map[string]string{"request_id": id, "status": "accepted",
		"message": "Request accepted for processing. Callback will be sent when complete."}
	if diff := cmp.Diff(want, reply); diff != "" || a.status != http.StatusAccepted {
		t.Fatalf("%d %s", a.status, diff)
	}
	if a.header.Get("Location") != "/requests/"+id || a.header.Get("Retry-After") != "1" ||
		a.header.Get("Content-Type") != "application/json" {
		t.Errorf("%v", a.header)
	}
	r := svc.wait(id, func(r tandem.Request) bool { return r.Status == tandem.StatusCallbackSent })
	if len(r.Attempts) != 1 || r.Complexity != 3 || r.CallbackStatus != tandem.CallbackSent {
		t.Errorf("%+v", r)
	}
	var arrived struct {
		Count   int               `json:"count"`
		Headers map[string]string `json:"headers"`
		Body    tandem.Callback   `json:"body"`
	}
	svc.get("/test-callback/"+id).decode(t, &arrived)
	if arrived.Count != 1 || arrived.Body.Type != tandem.EventCompleted || string(arrived.Body.Result) != `{"user":1}` ||
		!strings.HasPrefix(arrived.Headers[tandem.HeaderWebhookSignature], "v1,") {
		t.Errorf("%+v", arrived)
	}
}

// For /async a callback URL is put in after the first brace.
func TestBadBodies(t *testing.T) {
	t.Parallel()
	svc := start(t, func(s *setup) { s.server.MaxData, s.server.MaxDepth = 200, 4 })
	nest := func(levels int) string { // data with so many levels
		return `{"data":` + strings.Repeat(`{"a":`, levels-1) + `{"a":1}` + strings.Repeat(`}`, levels-1) + `}`
	}
	sized := func(n int) string { return `{"data":{"a":"` + strings.Repeat("x", n-8) + `"}}` }
	const ok = tandem.Code("")
	tests := []struct {
		name, body string
		want       tandem.Code
		locations  []string // of errors
	}{
		{"smallest", `{"data":{"a":1}}`, ok, nil},
		{"white space", " \r\n\t{ \"data\" : { \"a\" : 1 } } \n", ok, nil},
		{"byte order mark", "\xef\xbb\xbf" + `{"data":{"a":1}}`, ok, nil},
		{"null for what is optional", `{"data":{"a":1},"complexity":null}`, ok, nil},
		{"escaped name", `{"d\u0061ta":{"a":1}}`, ok, nil},
		{"unknown fields", `{"data":{"a":1},"x":[{"y":{}}],"X":null}`, ok, nil},
		{"names differ in case", `{"data":{"a":1,"A":2},"Data":7}`, ok, nil},
		{"same name in two objects", `{"data":{"a":{"b":1},"c":{"b":1}}}`, ok, nil},

		{"empty", ``, tandem.CodeInvalidJSON, nil},
		{"blank", "  \n", tandem.CodeInvalidJSON, nil},
		{"text", `hello`, tandem.CodeInvalidJSON, nil},
		{"truncated", `{"data":{"a":1}`, tandem.CodeInvalidJSON, nil},
		{"truncated in a string", `{"data":{"a":"x`, tandem.CodeInvalidJSON, nil},
		{"trailing garbage", `{"data":{"a":1}} x`, tandem.CodeInvalidJSON, nil},
		{"two values", `{"data":{"a":1}}{"data":{"a":1}}`, tandem.CodeInvalidJSON, nil},
		{"trailing comma", `{"data":{"a":1},}`, tandem.CodeInvalidJSON, nil},
		{"missing comma", `{"data":{"a":1} "x":1}`, tandem.CodeInvalidJSON, nil},
		{"name without quotes", `{data:{"a":1}}`, tandem.CodeInvalidJSON, nil},
		{"single quotes", `{'data':{'a':1}}`, tandem.CodeInvalidJSON, nil},
		{"comment", `{"data":{"a":1}/**/}`, tandem.CodeInvalidJSON, nil},
		{"NaN", `{"data":{"a":NaN}}`, tandem.CodeInvalidJSON, nil},
		{"Infinity", `{"data":{"a":-Infinity}}`, tandem.CodeInvalidJSON, nil},
		{"leading zero", `{"data":{"a":01}}`, tandem.CodeInvalidJSON, nil},
		{"raw control character", "{\"data\":{\"a\":\"\x01\"}}", tandem.CodeInvalidJSON, nil},
		{"byte order mark inside", `{"data":` + "\xef\xbb\xbf" + `{"a":1}}`, tandem.CodeInvalidJSON, nil},
		{"two byte order marks", "\xef\xbb\xbf\xef\xbb\xbf" + `{"data":{"a":1}}`, tandem.CodeInvalidJSON, nil},
		{"byte order mark alone", "\xef\xbb\xbf", tandem.CodeInvalidJSON, nil},
		{"100,000 levels never closed", `{"data":` + strings.Repeat("[", 60_000), tandem.CodeInvalidInput, nil},

		{"data is {}", `{"data":{}}`, tandem.CodeInvalidInput, nil},
		{"data is { }", "{\"data\":{ \n }}", tandem.CodeInvalidInput, nil},
		{"data is {} and more is wrong", `{"data":{},"complexity":99}`, tandem.CodeInvalidInput, nil},
		{"duplicate data", `{"data":{"a":1},"data":{"a":1}}`, tandem.CodeInvalidInput, nil},
		{"duplicate data, one escaped", `{"data":{"a":1},"\u0064ata":{"a":1}}`, tandem.CodeInvalidInput, nil},
		{"duplicate inside data", `{"data":{"a":1,"a":2}}`, tandem.CodeInvalidInput, nil},
		{"duplicate deep inside data", `{"data":{"a":[{"b":1,"b":2}]}}`, tandem.CodeInvalidInput, nil},
		{"duplicate unknown", `{"data":{"a":1},"x":1,"x":1}`, tandem.CodeInvalidInput, nil},
		{"invalid UTF-8", "{\"data\":{\"a\":\"\xff\"}}", tandem.CodeInvalidInput, nil},
		{"invalid UTF-8 in a name", "{\"data\":{\"\xff\":1}}", tandem.CodeInvalidInput, nil},
		{"lone surrogate", `{"data":{"a":"\ud800"}}`, tandem.CodeInvalidInput, nil},
		{"invalid UTF-8 and no JSON", "{\"data\":{\"a\":\"\xff\"}", tandem.CodeInvalidJSON, nil},
		{"as deep as allowed", nest(4), ok, nil},
		{"one level too deep", nest(5), tandem.CodeInvalidInput, nil},
		{"arrays count", `{"data":{"a":[[[1]]]}}`, ok, nil},
		{"arrays count, too deep", `{"data":{"a":[[[[]]]]}}`, tandem.CodeInvalidInput, nil},
		{"brackets in a string do not count", `{"data":{"a":"[[[[[[\\\"[[["}}`, ok, nil},

		{"as large as allowed", sized(200), ok, nil},
		{"one byte too large", sized(201), tandem.CodeTooLarge, nil},
		{"body too large", `{"data":{"a":1},"x":"` + strings.Repeat("x", 70_000) + `"}`, tandem.CodeTooLarge, nil},

		{"array", `[1]`, tandem.CodeValidation, []string{"body"}},
		{"null", `null`, tandem.CodeValidation, []string{"body"}},
		{"string", ` "data" `, tandem.CodeValidation, []string{"body"}},
		{"number", `12`, tandem.CodeValidation, []string{"body"}},
		{"data missing", `{}`, tandem.CodeValidation, []string{"body.data"}},
		{"data null", `{"data":null}`, tandem.CodeValidation, []string{"body.data"}},
		{"data array", `{"data":[1]}`, tandem.CodeValidation, []string{"body.data"}},
		{"data string", `{"data":"{}"}`, tandem.CodeValidation, []string{"body.data"}},
		{"data in another case", `{"DATA":{"a":1}}`, tandem.CodeValidation, []string{"body.data"}},
		{"complexity 0", `{"data":{"a":1},"complexity":0}`, tandem.CodeValidation, []string{"body.complexity"}},
		{"complexity 1", `{"data":{"a":1},"complexity":1}`, ok, nil},
		{"complexity 10", `{"data":{"a":1},"complexity":10}`, ok, nil},
		{"complexity 11", `{"data":{"a":1},"complexity":11}`, tandem.CodeValidation, []string{"body.complexity"}},
		{"complexity -1", `{"data":{"a":1},"complexity":-1}`, tandem.CodeValidation, []string{"body.complexity"}},
		{"complexity 2.0", `{"data":{"a":1},"complexity":2.0}`, ok, nil},
		{"complexity 1e1", `{"data":{"a":1},"complexity":1e1}`, ok, nil},
		{"complexity 2.5", `{"data":{"a":1},"complexity":2.5}`, tandem.CodeValidation, []string{"body.complexity"}},
		{"complexity 1e999", `{"data":{"a":1},"complexity":1e999}`, tandem.CodeValidation, []string{"body.complexity"}},
		{"complexity 2^64+1", `{"data":{"a":1},"complexity":18446744073709551617}`, tandem.CodeValidation,
			[]string{"body.complexity"}},
		{"complexity string", `{"data":{"a":1},"complexity":"2"}`, tandem.CodeValidation, []string{"body.complexity"}},
		{"complexity true", `{"data":{"a":1},"complexity":true}`, tandem.CodeValidation, []string{"body.complexity"}},
		{"task unknown", `{"data":{"a":1},"task":"dig"}`, tandem.CodeValidation, []string{"body.task"}},
		{"task empty", `{"data":{"a":1},"task":""}`, tandem.CodeValidation, []string{"body.task"}},
		{"task very long", `{"data":{"a":1},"task":"` + strings.Repeat("é", 500) + `"}`, tandem.CodeValidation,
			[]string{"body.task"}},
		{"everything", `{"data":1,"complexity":0,"task":1}`, tandem.CodeValidation,
			[]string{"body.data", "body.complexity", "body.task"}},
	}
	for _, tt := range tests {
		for _, path := range []string{"/sync", "/async"} {
			body := tt.body
			if path == "/async" && tt.name != "data missing" {
				body = strings.Replace(body, `{`, `{"callback_url":"`+svc.URL+`/test-callback",`, 1)
			}
			if tt.want == ok { // compute would only cost time
				body = strings.TrimRight(body, " \n")
				body = body[:len(body)-1] + `,"task":"echo"}`
			}
			a := svc.post(path, body)
			if tt.want == ok {
				if a.status >= 300 {
					t.Errorf("%s %s: %d %s", path, tt.name, a.status, a.body)
				}
				continue
			}
			p := a.problem(t)
			var locations []string
			for _, f := range p.Errors {
				if f.Location != "body.callback_url" { // bodies that start otherwise lack it
					locations = append(locations, f.Location)
				}
			}
			if diff := cmp.Diff(tt.locations, locations); p.Code != tt.want || diff != "" ||
				a.status != server.StatusOf(tt.want) {
				t.Errorf("%s %s: %d %s, want %s\n%s", path, tt.name, a.status, a.body, tt.want, diff)
			}
			if len(a.body) > 2000 {
				t.Errorf("%s %s: the error has %d bytes", path, tt.name, len(a.body))
			}
		}
	}
}

// A text cut between the halves of an emoji is a mistake of its own, and no broken UTF-8.
func TestNullIsAbsent(t *testing.T) {
	t.Parallel()
	order, err := server.ParseOrder(`{"data":{"a":null},"complexity":null,"task":null,"callback_url":null}`, false)
	if err != nil || order.Task != "compute" || order.Complexity != 1 || string(order.Data) != `{"a":null}` {
		t.Errorf("%+v, %v", order, err)
	}
}

func TestHalfASurrogatePairIsNamed(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	for body, want := range map[string]string{
		`{"data":{"a":"\ud83d"}}`:         "half a surrogate pair",
		`{"data":{"\udE00":1}}`:           "half a surrogate pair",
		`{"data":{"a":"\ud83d\ud83d"}}`:   "half a surrogate pair",
		"{\"data\":{\"a\":\"\xed\xa0\"}}": "not UTF-8",
	} {
		p := svc.post("/sync", body).problem(t)
		if p.Code != tandem.CodeInvalidInput || !strings.Contains(p.Detail, want) {
			t.Errorf("%s: %+v, want %q", body, p, want)
		}
	}
	if a := svc.post("/sync", `{"data":{"a":"\ud83d\ude00"},"task":"echo"}`); a.status != http.StatusOK {
		t.Errorf("a whole pair: %d %s", a.status, a.body)
	}
}

func TestCallbackURL(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	tests := []struct {
		url  string // as JSON; "" leaves it out
		want tandem.Code
	}{
		{``, tandem.CodeValidation},
		{`null`, tandem.CodeValidation},
		{`7`, tandem.CodeValidation},
		{`["http://127.0.0.1"]`, tandem.CodeValidation},
		{`""`, tandem.CodeInvalidCallbackURL},
		{`"nonsense"`, tandem.CodeInvalidCallbackURL},
		{`"/relative"`, tandem.CodeInvalidCallbackURL},
		{`"ftp://example.com/"`, tandem.CodeInvalidCallbackURL},
		{`"http://user:secret@example.com/"`, tandem.CodeInvalidCallbackURL},
		{`"http://169.254.169.254/latest/meta-data"`, tandem.CodeCallbackBlocked},
		{`"http:\/\/127.0.0.1:9\/x"`, ""},
	}
	for _, tt := range tests {
		body := `{"data":{"a":1},"task":"echo"}`
		if tt.url != "" {
			body = `{"data":{"a":1},"task":"echo","callback_url":` + tt.url + `}`
		}
		a := svc.post("/async", body)
		if tt.want == "" {
			if a.status != http.StatusAccepted {
				t.Errorf("%s: %d %s", tt.url, a.status, a.body)
			}
			continue
		}
		if p := a.problem(t); p.Code != tt.want {
			t.Errorf("%s: %s, want %s", tt.url, a.body, tt.want)
		}
		if a := svc.post("/sync", body); a.status != http.StatusOK {
			t.Errorf("/sync does not ignore callback_url %s: %s", tt.url, a.body)
		}
	}
}

func TestMediaTypes(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	tests := []struct {
		header string
		ok     bool
	}{
		{"Content-Type: application/json", true},
		{"Content-Type: Application/JSON; charset=UTF-8", true},
		{"Content-Type: application/json;charset=\"utf-8\"", true},
		{"Content-Type: application/json; charset=utf8", true},
		{"Content-Type: application/json; charset=UTF8", true},
		{"Content-Type: application/json; charset=utf-80", false},
		{"Content-Type: application/vnd.acme+json", true},
		{"Content-Type: application/json; charset=utf-16", false},
		{"Content-Type: text/json", false},
		{"Content-Type: text/plain", false},
		{"Content-Type: application/jsonp", false},
		{"Content-Type: application/x-www-form-urlencoded", false},
		{"Content-Type: ", false},
		{"Content-Type: application/json; =", false},
		{"Content-Encoding: identity", true},
		{"Content-Encoding: gzip", false},
	}
	for _, tt := range tests {
		a := svc.do(http.MethodPost, "/sync", `{"data":{"a":1},"task":"echo"}`, tt.header)
		if tt.ok && a.status != http.StatusOK || !tt.ok && a.status != http.StatusUnsupportedMediaType {
			t.Errorf("%s: %d %s", tt.header, a.status, a.body)
		}
	}
}

func TestWorkThatFails(t *testing.T) {
	t.Parallel()
	svc := start(t, func(s *setup) { s.engine.TaskTimeout = 50 * time.Millisecond })
	tests := []struct {
		task   string
		code   tandem.Code
		status int
		reason string // in the history
	}{
		{"broken", tandem.CodeTaskFailed, http.StatusBadGateway, tandem.FailedTask},
		{"panicky", tandem.CodeTaskFailed, http.StatusBadGateway, tandem.FailedPanic},
		{"stuck", tandem.CodeTaskTimeout, http.StatusGatewayTimeout, tandem.FailedTimeout},
	}
	for _, tt := range tests {
		a := svc.post("/sync", `{"data":{"a":1},"task":"`+tt.task+`"}`)
		p := a.problem(t)
		if p.Code != tt.code || a.status != tt.status || p.RequestID == "" {
			t.Errorf("%s: %d %s", tt.task, a.status, a.body)
			continue
		}
		r := svc.wait(p.RequestID, func(r tandem.Request) bool { return r.Status == tandem.StatusFailed })
		if r.ErrorCode != tt.reason || r.ErrorMessage == "" {
			t.Errorf("%s: the history says %+v", tt.task, r)
		}
	}
}

func TestServiceThatCannot(t *testing.T) {
	t.Parallel()
	order := `{"data":{"a":1},"task":"echo","callback_url":"http://127.0.0.1:9/"}`
	refused := func(t *testing.T, a answer, want tandem.Code) {
		t.Helper()
		p := a.problem(t)
		seconds, err := strconv.Atoi(a.header.Get("Retry-After"))
		if p.Code != want || a.status != http.StatusServiceUnavailable || err != nil || seconds < 1 {
			t.Errorf("%d %s, Retry-After %q; want %s", a.status, a.body, a.header.Get("Retry-After"), want)
		}
	}
	t.Run("draining", func(t *testing.T) {
		t.Parallel()
		svc := start(t, nil)
		svc.engine.Drain()
		refused(t, svc.post("/sync", order), tandem.CodeDraining)
		refused(t, svc.post("/async", order), tandem.CodeDraining)
		refused(t, svc.get("/readyz"), tandem.CodeDraining)
		for _, path := range []string{"/livez", "/healthz", "/stats", "/requests"} {
			if a := svc.get(path); a.status != http.StatusOK {
				t.Errorf("%s: %d %s", path, a.status, a.body)
			}
		}
	})
	t.Run("store", func(t *testing.T) {
		t.Parallel()
		svc := start(t, nil)
		id := svc.submit(order)
		for _, method := range []string{"Accept", "Request", "Requests", "Stats"} {
			svc.store.sabotage(method, unavailable)
		}
		refused(t, svc.post("/sync", order), tandem.CodeStoreUnavailable)
		refused(t, svc.post("/async", order), tandem.CodeStoreUnavailable)
		for _, path := range []string{"/requests", "/requests/" + id, "/stats", "/readyz"} {
			refused(t, svc.get(path), tandem.CodeStoreUnavailable)
		}
	})
	t.Run("store takes no writes", func(t *testing.T) {
		t.Parallel()
		svc := start(t, nil)
		svc.store.sabotage("Unavailable", unavailable)
		refused(t, svc.get("/readyz"), tandem.CodeStoreUnavailable)
		if a := svc.get("/stats"); a.status != http.StatusOK {
			t.Errorf("/stats: %d %s", a.status, a.body)
		}
	})
	t.Run("queue full", func(t *testing.T) {
		t.Parallel()
		svc := start(t, func(s *setup) { s.store.MaxQueue = 1; s.engine.TaskTimeout = time.Hour })
		svc.submit(`{"data":{"a":1},"task":"stuck","callback_url":"http://127.0.0.1:9/"}`)
		refused(t, svc.post("/async", order), tandem.CodeQueueFull)
	})
	t.Run("no slot", func(t *testing.T) {
		t.Parallel()
		begun, release := make(chan struct{}), make(chan struct{})
		stubborn := work.Task{Name: "stubborn", Class: work.IO,
			Run: work.JSON(func(ctx context.Context, _ json.RawMessage, _ int) (json.RawMessage, error) {
				close(begun)
				<-ctx.Done() // not for the release alone: of two timers the later one may be noticed first
				<-release    // holds the one slot beyond its deadline
				return nil, errors.New("released")
			})}
		svc := start(t, func(s *setup) {
			s.engine.IOWorkers, s.engine.TaskTimeout, s.engine.Tasks = 1, 300*time.Millisecond, []work.Task{stubborn}
		})
		first := make(chan answer, 1)
		go func() { first <- svc.post("/sync", `{"data":{"a":1},"task":"stubborn"}`) }()
		select {
		case <-begun:
		case a := <-first:
			t.Fatalf("it never had the slot: %d %s", a.status, a.body)
		}
		a := svc.post("/sync", order)
		refused(t, a, tandem.CodeOverloaded)
		if r := svc.wait(a.problem(t).RequestID,
			func(tandem.Request) bool { return true }); r.ErrorCode != tandem.FailedNoSlot {
			t.Errorf("the history says %+v", r)
		}
		close(release)
		if a := <-first; a.status != http.StatusGatewayTimeout {
			t.Errorf("%d %s", a.status, a.body)
		}
	})
}

func TestDeepNestingIsCheap(t *testing.T) {
	t.Parallel()
	svc := start(t, func(s *setup) { s.server.MaxData = 16 << 20 })
	const levels = 100_000
	for name, body := range map[string]string{
		"arrays":           `{"data":{"a":` + strings.Repeat("[", levels) + strings.Repeat("]", levels) + `}}`,
		"objects":          `{"data":` + strings.Repeat(`{"a":`, levels) + `1` + strings.Repeat("}", levels) + `}`,
		"never closed":     `{"data":` + strings.Repeat("[", levels),
		"not in data":      `{"data":{"a":1},"x":` + strings.Repeat("[", levels) + strings.Repeat("]", levels) + `}`,
		"a million levels": `{"data":` + strings.Repeat("[", 1<<20),
	} {
		a := svc.post("/sync", body)
		if p := a.problem(t); p.Code != tandem.CodeInvalidInput {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
		if took, err := strconv.ParseFloat(a.header.Get("X-Process-Time"), 64); err != nil || took > 2 {
			t.Errorf("%s took %v s", name, took)
		}
	}
}

func TestCallerWhoHangsUpCancelsTheWork(t *testing.T) {
	t.Parallel()
	begun := make(chan struct{})
	patient := work.Task{Name: "patient", Class: work.IO,
		Run: work.JSON(func(ctx context.Context, _ json.RawMessage, _ int) (json.RawMessage, error) {
			close(begun)
			<-ctx.Done()
			return nil, context.Cause(ctx)
		})}
	svc := start(t, func(s *setup) { s.engine.Tasks = []work.Task{patient} })
	ctx, hangUp := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, svc.URL+"/sync",
		strings.NewReader(`{"data":{"a":1},"task":"patient"}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	gone := make(chan error, 1)
	go func() {
		response, err := svc.http.Do(r)
		if err == nil {
			response.Body.Close()
		}
		gone <- err
	}()
	<-begun
	hangUp()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("the call ended with %v", err)
	}
	var requests []tandem.Request
	svc.until("the history says so", func() bool {
		requests = nil
		svc.get("/requests?status=failed").decode(t, &requests)
		return len(requests) == 1
	})
	if requests[0].ErrorCode != tandem.FailedClientClosed {
		t.Errorf("%+v", requests[0])
	}
}
