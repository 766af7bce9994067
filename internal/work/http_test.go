package work_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tandem"
	"tandem/internal/tandemtest"
	"tandem/internal/work"
)

// httpTask is a task of a service.
func httpTask(t *testing.T, h work.HTTP) work.Task {
	t.Helper()
	h.Log = slog.New(slog.DiscardHandler)
	task, err := h.Task("test")
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Validate(); err != nil {
		t.Fatal(err)
	}
	return task
}

// order is what most tests send.
func order() work.Input {
	return work.Input{RequestID: "req_1", Attempt: 2, Attempts: 4, Data: []byte(`{"page":1}`)}
}

// rawService hands each connection, with one request read whole, to serve, which says whether it wants the next one.
func rawService(t *testing.T, serve func(conn *net.TCPConn, request *http.Request) bool) (url string, seen *atomic.Int64) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	seen = new(atomic.Int64)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer conn.Close()
				defer context.AfterFunc(ctx, func() { conn.Close() })()
				for reader := bufio.NewReader(conn); ; {
					request, err := http.ReadRequest(reader)
					if err != nil {
						return
					}
					_, _ = io.Copy(io.Discard, request.Body)
					seen.Add(1)
					if !serve(conn.(*net.TCPConn), request) {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		listener.Close()
		running.Wait()
	})
	return "http://" + listener.Addr().String() + "/work", seen
}

// say writes an answer and ends the connection.
func say(text string) func(*net.TCPConn, *http.Request) bool {
	return func(conn *net.TCPConn, _ *http.Request) bool {
		_, _ = io.WriteString(conn, text)
		return false
	}
}

// forever writes a text until the other side has enough.
func forever(head, text string) func(*net.TCPConn, *http.Request) bool {
	return func(conn *net.TCPConn, _ *http.Request) bool {
		_, err := io.WriteString(conn, head)
		for err == nil {
			_, err = io.WriteString(conn, text)
		}
		return false
	}
}

// outcome is what a test compares.
type outcome struct {
	State   work.State
	Body    string
	Type    string
	Message string
	Code    int
}

func outcomeOf(r work.Result) outcome {
	body, contentType := r.Body()
	return outcome{r.State(), string(body), contentType, r.Message(), r.StatusCode()}
}

// TestHTTPAnswers is the table of answers, row by row.
func TestHTTPAnswers(t *testing.T) {
	t.Parallel()
	const status = "HTTP/1.1 "
	retry := "\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\nbusy"
	for name, tt := range map[string]struct {
		answer string
		want   outcome
	}{
		"JSON": {status + "200 OK\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n{\"a\":1}",
			outcome{work.StateDone, `{"a":1}`, "", "", 200}},
		"bytes of a type": {status + "201 Created\r\nContent-Type: image/png\r\nContent-Length: 3\r\n\r\n\x00\xffx",
			outcome{work.StateDone, "\x00\xffx", "image/png", "", 201}},
		"no type": {status + "200 OK\r\nContent-Length: 2\r\n\r\nhi",
			outcome{work.StateDone, "hi", "application/octet-stream", "", 200}},
		"a type that is none": {status + "200 OK\r\nContent-Type: ;;\r\nContent-Length: 2\r\n\r\nhi",
			outcome{work.StateDone, "hi", "application/octet-stream", "", 200}},
		"no content": {status + "204 No Content\r\n\r\n", outcome{work.StateDone, "null", "", "", 204}},
		"empty text": {status + "200 OK\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n\r\n",
			outcome{work.StateDone, "", "text/plain", "", 200}},
		"to the end of the connection": {status + "200 OK\r\nContent-Type: text/plain\r\n\r\nall of it",
			outcome{work.StateDone, "all of it", "text/plain", "", 200}},
		"broken JSON": {status + "200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{]",
			outcome{work.StateFailed, "", "", "the task returned something that is not JSON", 0}},
		"compressed": {status + "200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx",
			outcome{work.StateFailed, "", "", `the service answered with Content-Encoding "gzip", which nobody asked for`, 200}},
		"said to be too large": {status + "200 OK\r\nContent-Length: 2000\r\n\r\n",
			outcome{work.StateFailed, "", "", "the result of the service is larger than max_result, 1 KiB", 200}},
		"429": {status + "429 Too Many Requests" + retry,
			outcome{work.StateAgain, "", "", "the service answered 429 Too Many Requests: busy", 429}},
		"503": {status + "503 Service Unavailable" + retry,
			outcome{work.StateAgain, "", "", "the service answered 503 Service Unavailable: busy", 503}},
		"425": {status + "425 Too Early" + retry,
			outcome{work.StateAgain, "", "", "the service answered 425 Too Early: busy", 425}},
		"408": {status + "408 Request Timeout\r\nContent-Length: 0\r\n\r\n",
			outcome{work.StateUnknown, "", "", "the service answered 408 Request Timeout", 408}},
		"500": {status + "500 Oops\r\nContent-Length: 4\r\n\r\noops",
			outcome{work.StateUnknown, "", "", "the service answered 500 Internal Server Error: oops", 500}},
		"502": {status + "502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
			outcome{work.StateUnknown, "", "", "the service answered 502 Bad Gateway", 502}},
		"504": {status + "504 Gateway Timeout\r\nContent-Length: 0\r\n\r\n",
			outcome{work.StateUnknown, "", "", "the service answered 504 Gateway Timeout", 504}},
		"501": {status + "501 Not Implemented\r\nContent-Length: 0\r\n\r\n",
			outcome{work.StateFailed, "", "", "the service answered 501 Not Implemented", 501}},
		"422": {status + "422 No\r\nContent-Length: 9\r\n\r\n no page\xff\n",
			outcome{work.StateFailed, "", "", "the service answered 422 Unprocessable Entity: no page\ufffd", 422}},
		"a number of its own": {status + "799 \r\nContent-Length: 0\r\n\r\n",
			outcome{work.StateFailed, "", "", "the service answered 799", 799}},
		"redirect": {status + "307 Temporary Redirect\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n",
			outcome{work.StateFailed, "", "", "the service answered 307 Temporary Redirect; redirects are not followed", 307}},
		"switching": {status + "101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
			outcome{work.StateFailed, "", "", "the service answered 101, which nobody asked for", 101}},
		"early hints": {status + "103 Early Hints\r\nLink: </x>\r\n\r\n" + status + "200 OK\r\nContent-Length: 1\r\n\r\n7",
			outcome{work.StateDone, "7", "application/octet-stream", "", 200}},
		"202 without anything": {status + "202 Accepted\r\nContent-Length: 0\r\n\r\n", outcome{work.StateFailed, "", "",
			"the service answered 202 without a Location, so nobody would learn its result", 202}},
		"a length too long": {status + "200 OK\r\nContent-Length: 9\r\n\r\nshort",
			outcome{work.StateUnknown, "", "", "no connection, or it broke before a full answer", 200}},
		"a length too short": {status + "200 OK\r\nContent-Length: 2\r\n\r\nlong",
			outcome{work.StateDone, "lo", "application/octet-stream", "", 200}},
		"two lengths": {status + "200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nlong",
			outcome{work.StateUnknown, "", "", "no connection, or it broke before a full answer", 0}},
		"no HTTP": {"220 mail.example ESMTP\r\n",
			outcome{work.StateUnknown, "", "", "no connection, or it broke before a full answer", 0}},
		"nothing": {"", outcome{work.StateUnknown, "", "", "no connection, or it broke before a full answer", 0}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, seen := rawService(t, say(tt.answer))
			task := httpTask(t, work.HTTP{URL: url, MaxResult: 1024})
			result := work.Run(t.Context(), task, order())
			if diff := cmp.Diff(tt.want, outcomeOf(result)); diff != "" || seen.Load() != 1 {
				t.Errorf("%d requests; (-want +got):\n%s", seen.Load(), diff)
			}
		})
	}
}

// TestHTTPRetries: what each answer does to the attempts of a request, and which Retry-After is obeyed.
func TestHTTPRetries(t *testing.T) {
	t.Parallel()
	policy := work.Retry{Attempts: 4, Backoff: time.Second, MaxAge: time.Hour}
	accepted := time.Now()
	for name, tt := range map[string]struct {
		status  string
		unknown bool // Retry.Unknown
		again   bool
		runs    int // that have used up an attempt, of two
		after   time.Duration
	}{
		"429":          {"429", false, true, 1, 7 * time.Second},
		"503":          {"503", false, true, 1, 7 * time.Second},
		"425":          {"425", false, true, 2, 7 * time.Second},
		"500":          {"500", false, false, 0, 0},
		"500, allowed": {"500", true, true, 2, 2 * time.Second},
		"404":          {"404", true, false, 0, 0},
	} {
		url, _ := rawService(t, say("HTTP/1.1 "+tt.status+" x\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n"))
		result := work.Run(t.Context(), httpTask(t, work.HTTP{URL: url}), order())
		policy.Unknown = tt.unknown
		at, runs, again := policy.After(work.Ended{Result: result, Attempt: 2, Accepted: accepted, At: accepted}, 0)
		if again != tt.again || again && (runs != tt.runs || at.Sub(accepted) != tt.after) {
			t.Errorf("%s: again %v, %d runs, after %v; want %v, %d, %v",
				name, again, runs, at.Sub(accepted), tt.again, tt.runs, tt.after)
		}
	}
}

// TestHTTPRequest: the service gets the data as it came, what the contract says, and nothing else.
func TestHTTPRequest(t *testing.T) {
	t.Parallel()
	secret := tandem.NewSecret()
	deadline := time.Now().Add(time.Minute)
	data := []byte("\x00{ not json \xff")
	var got http.Header
	var verified error
	service := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if !bytes.Equal(body, data) || r.Method != http.MethodPost || r.URL.String() != "/work?a=%2F" {
			t.Errorf("%s %s with %q", r.Method, r.URL, body)
		}
		got, verified = r.Header, secret.Verify(r.Header, body, time.Now())
	}))
	defer service.Close()
	task := httpTask(t, work.HTTP{URL: service.URL + "/work?a=%2F", Secret: secret,
		Headers: http.Header{"authorization": {"Bearer abc"}}})
	in := order()
	in.Data, in.ContentType, in.Deadline = data, "image/x-strange; a=1", deadline
	in.Traceparent, in.Tracestate = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "a=b"
	in.CompleteURL = "http://127.0.0.1:1/complete/x"
	if result := work.Run(t.Context(), task, in); result.State() != work.StateDone || verified != nil {
		t.Fatalf("%+v, signature: %v", outcomeOf(result), verified)
	}
	if id := got.Get("Webhook-Id"); id != "req_1.work" {
		t.Errorf("webhook-id %q", id)
	}
	got.Del("Webhook-Id")
	got.Del("Webhook-Timestamp")
	got.Del("Webhook-Signature")
	want := http.Header{
		"Accept-Encoding": {"identity"}, "Authorization": {"Bearer abc"}, "Content-Length": {fmt.Sprint(len(data))},
		"Content-Type": {"image/x-strange; a=1"}, "Idempotency-Key": {"req_1"},
		"Tandem-Attempt": {"2/4"}, "Tandem-Deadline": {deadline.UTC().Format(time.RFC3339)},
		"Tandem-Complete": {in.CompleteURL}, "Traceparent": {in.Traceparent}, "Tracestate": {"a=b"},
		"User-Agent": {"tandem/" + tandem.Version},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("header (-want +got):\n%s", diff)
	}
	// Without a secret, a deadline and the rest there is none of it.
	if result := work.Run(t.Context(), httpTask(t, work.HTTP{URL: service.URL + "/work?a=%2F"}), work.Input{
		RequestID: "req_2", Attempt: 1, Attempts: 1, Data: data}); result.State() != work.StateDone {
		t.Fatalf("%+v", outcomeOf(result))
	}
	want = http.Header{
		"Accept-Encoding": {"identity"}, "Content-Length": {fmt.Sprint(len(data))}, "Content-Type": {"application/json"},
		"Idempotency-Key": {"req_2"}, "Tandem-Attempt": {"1/1"}, "User-Agent": {"tandem/" + tandem.Version},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("header of the least (-want +got):\n%s", diff)
	}
}

// TestHTTPTaken: where a 202 leads, and how its result is asked for.
func TestHTTPTaken(t *testing.T) {
	t.Parallel()
	var location, reply atomic.Value
	var asked atomic.Value
	url, _ := rawService(t, func(conn *net.TCPConn, r *http.Request) bool {
		if r.Method == http.MethodPost {
			_, _ = fmt.Fprintf(conn, "HTTP/1.1 202 Accepted\r\nRetry-After: 9\r\n%sContent-Length: 0\r\n\r\n", location.Load())
			return true
		}
		asked.Store(fmt.Sprintf("%s %s %d %q %s", r.Method, r.URL, r.ContentLength, r.Header.Get("Content-Type"),
			r.Header.Get("X-Token")))
		_, _ = io.WriteString(conn, reply.Load().(string))
		return !strings.Contains(reply.Load().(string), "9\r\n") // the answer that is cut
	})
	base := strings.TrimSuffix(url, "/work")
	task := httpTask(t, work.HTTP{URL: url, Headers: http.Header{"X-Token": {"t"}}})
	in := order()
	in.CompleteURL = "http://127.0.0.1:1/complete/x"
	for written, want := range map[string]string{
		"":                                       "",
		"/jobs/1":                                base + "/jobs/1",
		"jobs/1?x=1":                             base + "/jobs/1?x=1",
		strings.ToUpper(base[:4]) + base[4:]:     base,
		"//" + base[7:] + "/x":                   base + "/x",
		"http://127.0.0.1:1/other-port":          "refused",
		"https" + base[4:]:                       "refused",
		"http://user@" + base[7:]:                "refused",
		"http://localhost" + base[16:]:           "refused",
		"http://169.254.169.254/latest":          "refused",
		"mailto:x@example.com":                   "refused",
		"%zz":                                    "refused",
		"//" + base[7:] + "@169.254.169.254:80/": "refused",
	} {
		location.Store("")
		if written != "" {
			location.Store("Location: " + written + "\r\n")
		}
		result := work.Run(t.Context(), task, in)
		at, after := result.Taken()
		if want == "refused" {
			if result.State() != work.StateFailed || at != "" {
				t.Errorf("%q: %+v, %q", written, outcomeOf(result), at)
			}
		} else if result.State() != work.StateTaken || at != want || after != 9*time.Second {
			t.Errorf("%q: %+v, %q after %v; want %q", written, outcomeOf(result), at, after, want)
		}
	}
	for answer, want := range map[string]work.State{
		"200 OK\r\nContent-Length: 1\r\n\r\n1":                       work.StateDone,
		"202 Accepted\r\nLocation: /2\r\nContent-Length: 0\r\n\r\n":  work.StateTaken,
		"500 Oops\r\nContent-Length: 0\r\n\r\n":                      work.StateAgain,
		"503 Busy\r\nContent-Length: 0\r\n\r\n":                      work.StateAgain,
		"404 Gone\r\nContent-Length: 0\r\n\r\n":                      work.StateFailed,
		"303 See Other\r\nLocation: /3\r\nContent-Length: 0\r\n\r\n": work.StateFailed,
		"200 OK\r\nContent-Length: 9\r\n\r\n1":                       work.StateAgain,
	} {
		reply.Store("HTTP/1.1 " + answer)
		if result := task.Poll(t.Context(), in, base+"/jobs/1"); result.State() != want {
			t.Errorf("poll, %q: %+v", answer, outcomeOf(result))
		}
		if got := asked.Load(); got != `GET /jobs/1 0 "" t` {
			t.Errorf("poll sent %s", got)
		}
	}
	reply.Store("HTTP/1.1 204 No Content\r\n\r\n")
	if result := task.Withdraw(t.Context(), in, base+"/jobs/1"); result.State() != work.StateDone ||
		asked.Load() != `DELETE /jobs/1 0 "" t` {
		t.Errorf("withdraw: %+v, sent %v", outcomeOf(result), asked.Load())
	}
	asked.Store("nothing")
	if result := task.Poll(t.Context(), in, "http://127.0.0.1:1/jobs/1"); result.State() != work.StateFailed {
		t.Errorf("poll elsewhere: %+v", outcomeOf(result))
	}
}

// TestHTTPStreams: lines and events are progress, and the last one is the result.
func TestHTTPStreams(t *testing.T) {
	t.Parallel()
	const lines, events = "application/x-ndjson", "text/event-stream; charset=utf-8"
	for name, tt := range map[string]struct {
		contentType, body string
		want              outcome
		progress          []string
	}{
		"lines": {lines, "{\"p\":1}\n\n{\"p\":2}\r\n{\"r\":3}",
			outcome{work.StateDone, `{"r":3}`, "", "", 200}, []string{`{"p":1}`, `{"p":2}`, `{"r":3}`}},
		"no lines": {lines, "\n", outcome{work.StateDone, "null", "", "", 200}, nil},
		"a last line that is not JSON": {lines, "1\nhalf", outcome{work.StateFailed, "", "",
			"the task returned something that is not JSON", 0}, []string{`1`, `"half"`}},
		"a long line": {lines, "\"" + strings.Repeat("x", 70_000) + "\"\n1\n", outcome{work.StateDone, "1", "", "", 200},
			[]string{"1"}},
		"events": {events, "\ufeff: hello\n\nevent: progress\ndata: {\"p\":1}\n\ndata: half\n\nid: 7\ndata: {\"r\":\ndata:2}\n\n",
			outcome{work.StateDone, "{\"r\":\n2}", "", "", 200}, []string{`{"p":1}`, `"half"`, "{\"r\":\n2}"}},
		"text": {events, "data: a\r\ndata:  b\r\n\r\n", outcome{work.StateDone, "a\n b", "text/plain; charset=utf-8", "", 200},
			[]string{`"a\n b"`}},
		"an event without its end": {events, "data: 1\n\ndata: 2", outcome{work.StateDone, "2", "", "", 200},
			[]string{"1", "2"}},
		"no events":      {events, ": nothing\n\nevent: x\n\n", outcome{work.StateDone, "null", "", "", 200}, nil},
		"an empty event": {events, "data\n\n", outcome{work.StateDone, "null", "", "", 200}, []string{`""`}},
		"an error": {events, "data: 1\n\nevent: error\ndata: no paper\n\ndata: 2\n\n",
			outcome{work.StateFailed, "", "", "no paper", 200}, []string{"1", `"no paper"`}},
	} {
		url, _ := rawService(t, say(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s",
			tt.contentType, len(tt.body), tt.body)))
		var progress []string
		in := order()
		in.Progress = func(report []byte) { progress = append(progress, string(report)) }
		result := work.Run(t.Context(), httpTask(t, work.HTTP{URL: url, MaxResult: 100_000}), in)
		if diff := cmp.Diff(tt.want, outcomeOf(result)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if !slices.Equal(progress, tt.progress) {
			t.Errorf("%s: progress %q, want %q", name, progress, tt.progress)
		}
	}
	// Progress comes while the work goes on, and a stream that is cut has no result.
	reported := make(chan struct{})
	url, _ := rawService(t, func(conn *net.TCPConn, _ *http.Request) bool {
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Type: "+lines+"\r\nContent-Length: 99\r\n\r\n1\n")
		<-reported
		return false
	})
	in := order()
	in.Progress = func([]byte) { close(reported) }
	if result := work.Run(t.Context(), httpTask(t, work.HTTP{URL: url}), in); result.State() != work.StateUnknown {
		t.Errorf("cut: %+v", outcomeOf(result))
	}
}

// TestHTTPCertificates: the service's authority and our own certificate.
func TestHTTPCertificates(t *testing.T) {
	t.Parallel()
	theirs := tandemtest.NewCertificate(t, 1, time.Now().Add(time.Hour))
	ours := tandemtest.NewCertificate(t, 2, time.Now().Add(time.Hour))
	service := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	service.TLS = &tls.Config{Certificates: []tls.Certificate{theirs.Certificate},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ours.Pool}
	service.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	service.StartTLS()
	defer service.Close()
	read := func(path string) string {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	certFile, keyFile := ours.Write(t, t.TempDir())
	authority, _ := theirs.Write(t, t.TempDir())
	h := work.HTTP{URL: service.URL, CA: read(authority), Cert: read(certFile), Key: read(keyFile)}
	if result := work.Run(t.Context(), httpTask(t, h), order()); result.State() != work.StateDone {
		t.Errorf("both: %+v", outcomeOf(result))
	}
	if result := work.Run(t.Context(), httpTask(t, work.HTTP{URL: h.URL, CA: h.CA}), order()); result.State() == work.StateDone {
		t.Error("the service lets somebody in without a certificate")
	}
	if got, want := outcomeOf(work.Run(t.Context(), httpTask(t, work.HTTP{URL: h.URL}), order())), (outcome{
		State: work.StateAgain, Message: "TLS: the certificate is signed by an unknown authority"}); got != want {
		t.Errorf("without its authority: %+v", got)
	}
}

// TestHTTPBadFields: what an operator may write wrong is refused before anything is called.
func TestHTTPBadFields(t *testing.T) {
	t.Parallel()
	for want, h := range map[string]work.HTTP{
		"url: must start with http:// or https://": {URL: "ftp://x/"},
		"url: must name a host":                    {URL: "http:///x"},
		"url: must not contain a user name":        {URL: "http://u:p@x/"},
		"url: must have 1 to":                      {},
		"169.254.169.254:80: metadata":             {URL: "http://169.254.169.254/latest"},
		"metadata.google.internal:80: metadata":    {URL: "http://metadata.google.internal/"},
		`header "A b": not a header`:               {URL: "http://x/", Headers: http.Header{"A b": {"x"}}},
		`header "A": not a header`:                 {URL: "http://x/", Headers: http.Header{"A": {"x\r\nB: y"}}},
		`header "idempotency-key": tandem sets it`: {URL: "http://x/", Headers: http.Header{"idempotency-key": {"x"}}},
		`header "TANDEM-Attempt": tandem sets it`:  {URL: "http://x/", Headers: http.Header{"TANDEM-Attempt": {"x"}}},
		"max_result":   {URL: "http://x/", MaxResult: 65 << 20},
		"ca:":          {URL: "http://x/", CA: "x"},
		"cert and key": {URL: "http://x/", Cert: "x"},
	} {
		if _, err := h.Task("test"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", h, err, want)
		}
	}
}
