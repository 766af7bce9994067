package main_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"tandem"
	"tandem/internal/submissions"
)

const adaBody = `{"firstName":"Ada","lastName":"Lovelace"}`

// external is an external service whose manners change.
type external struct {
	*httptest.Server
	mu      sync.Mutex
	manners http.HandlerFunc
	keys    map[string]int // :: Idempotency-Key → calls
}

func newExternal(t *testing.T) *external {
	t.Helper()
	x := &external{keys: map[string]int{}, manners: func(http.ResponseWriter, *http.Request) {}}
	x.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		x.mu.Lock()
		x.keys[r.Header.Get("Idempotency-Key")]++
		manners := x.manners
		x.mu.Unlock()
		manners(w, r)
	}))
	t.Cleanup(x.Close)
	return x
}

func (x *external) behave(manners http.HandlerFunc) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.manners = manners
}

func (x *external) calls(id string) int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.keys[id]
}

// submitted is an answer to a submission.
type submitted struct {
	status int
	body   string
	ID     string      `json:"submissionId"`
	Fate   string      `json:"external"`
	Batch  string      `json:"batch_id"`
	Total  int         `json:"total_processed"`
	Code   tandem.Code `json:"code"`
}

// submit sends a submission or a batch.
func submit(url, body string) (submitted, error) {
	path := "/api/submit"
	if strings.HasPrefix(body, `{"submissions"`) {
		path = "/api/submit/batch"
	}
	response, err := http.Post(url+path, "application/json", strings.NewReader(body))
	if err != nil {
		return submitted{}, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return submitted{}, err
	}
	s := submitted{status: response.StatusCode, body: string(text)}
	return s, json.Unmarshal(text, &s)
}

func mustSubmit(t *testing.T, url, body string) submitted {
	t.Helper()
	s, err := submit(url, body)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// awaitStatus waits until a request has a status.
func awaitStatus(t *testing.T, url, id string, want tandem.Status) tandem.Request {
	t.Helper()
	var r tandem.Request
	if err := poll(id+" to be "+string(want), func() error {
		r = tandem.Request{}
		if err := fetchJSON(url+"/requests/"+id, &r); err != nil {
			return err
		}
		if r.Status != want {
			return fmt.Errorf("it is %s", r.Status)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return r
}

// fetchJSON decodes the answer to a GET.
func fetchJSON(url string, into any) error {
	response, err := http.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, response.Status)
	}
	return json.NewDecoder(response.Body).Decode(into)
}

// TestSubmissionsWithABadExternalService: whatever it does, a submission is kept, answered soon, and confirmed once the
// service has come to its senses. With the real binary.
func TestSubmissionsWithABadExternalService(t *testing.T) {
	t.Parallel()
	for name, manners := range map[string]http.HandlerFunc{
		"500":      func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"redirect": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
		"hangs":    func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"garbage": func(w http.ResponseWriter, _ *http.Request) {
			if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
				io.WriteString(conn, "\x00\x01\x02 not HTTP at all\r\n")
				conn.Close()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := newExternal(t)
			p := startServe(t, "--external-url", x.URL+"/in", "--external-timeout", "500ms")
			if s := mustSubmit(t, p.url, adaBody); s.status != http.StatusOK || s.Fate != "confirmed" || x.calls(s.ID) != 1 {
				t.Fatalf("while all is well: %d %s", s.status, s.body)
			}
			x.behave(manners)
			s := mustSubmit(t, p.url, adaBody)
			if s.status != http.StatusOK || s.Fate != "pending" {
				t.Fatalf("%d %s", s.status, s.body)
			}
			x.behave(func(http.ResponseWriter, *http.Request) {})
			awaitStatus(t, p.url, s.ID, tandem.StatusCompleted)
			if n := x.calls(s.ID); n < 2 {
				t.Errorf("%d calls", n)
			}
		})
	}
}

// TestSubmissionsWithoutTheExternalService: nobody listens, then somebody does.
func TestSubmissionsWithoutTheExternalService(t *testing.T) {
	t.Parallel()
	address, err := freeAddress()
	if err != nil {
		t.Fatal(err)
	}
	p := startServe(t, "--external-url", "http://"+address)
	s := mustSubmit(t, p.url, adaBody)
	if s.status != http.StatusOK || s.Fate != "pending" {
		t.Fatalf("%d %s", s.status, s.body)
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Skipf("SKIPPED: somebody else has taken %s: %v", address, err)
	}
	x := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	x.Listener.Close()
	x.Listener = listener
	x.Start()
	defer x.Close()
	awaitStatus(t, p.url, s.ID, tandem.StatusCompleted)
}

// TestSubmissionKilledInItsCall kills the real binary while the external service is called: the next process
// finds the submission and finishes it, under the same key.
func TestSubmissionKilledInItsCall(t *testing.T) {
	t.Parallel()
	x := newExternal(t)
	called := make(chan string, 100)
	x.behave(func(_ http.ResponseWriter, r *http.Request) {
		called <- r.Header.Get("Idempotency-Key")
		<-r.Context().Done()
	})
	database := filepath.Join(t.TempDir(), "tandem.db")
	p := startServe(t, "--db", database, "--external-url", x.URL, "--external-timeout", "20s")
	var broken sync.WaitGroup
	broken.Go(func() {
		if s, err := submit(p.url, `{"submissions":[`+adaBody+`,`+adaBody+`]}`); err == nil {
			t.Errorf("answered by a dead server: %d %s", s.status, s.body)
		}
	})
	ids := []string{<-called, <-called}
	for _, id := range ids { // it is on record while its call runs
		if r := awaitStatus(t, p.url, id, tandem.StatusProcessing); r.BatchID == "" || r.Task != submissions.Task {
			t.Errorf("%+v", r)
		}
	}
	p.kill()
	broken.Wait()
	x.behave(func(http.ResponseWriter, *http.Request) {})
	next := startServe(t, "--db", database, "--external-url", x.URL)
	for _, id := range ids {
		r := awaitStatus(t, next.url, id, tandem.StatusCompleted)
		if r.ErrorCode != "" || x.calls(id) != 2 {
			t.Errorf("%d calls; %+v", x.calls(id), r)
		}
	}
	var list struct {
		Total int `json:"total"`
	}
	if err := fetchJSON(next.url+"/api/submissions", &list); err != nil || list.Total != 2 {
		t.Errorf("%d are kept, %v", list.Total, err)
	}
}
