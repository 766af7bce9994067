package server_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"tandem"
)

func TestReceivedCallbacks(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	receive := func(id, body string) answer {
		return svc.do(http.MethodPost, "/test-callback", body, "Webhook-Id: "+id)
	}
	type shown struct {
		Count     int  `json:"count"`
		Body      any  `json:"body"`
		Truncated bool `json:"truncated"`
	}
	show := func(id string) (s shown) {
		t.Helper()
		a := svc.get("/test-callback/" + id)
		if a.status != http.StatusOK {
			t.Fatalf("%s: %d %s", id, a.status, a.body)
		}
		a.decode(t, &s)
		return s
	}

	for _, body := range []string{`{"n":1}`, `{"n":2}`} {
		if a := receive("twice", body); a.status != http.StatusOK {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	if got := show("twice"); got.Count != 2 || fmt.Sprint(got.Body) != "map[n:2]" {
		t.Errorf("after two: %+v", got)
	}
	receive("text", "not JSON")
	if got := show("text"); got.Body != "not JSON" {
		t.Errorf("%+v", got)
	}
	for size, truncated := range map[int]bool{64 << 10: false, 64<<10 + 1: true, 1 << 20: true} {
		id := fmt.Sprint("size-", size)
		receive(id, strings.Repeat("x", size))
		if got := show(id); got.Truncated != truncated || len(got.Body.(string)) != min(size, 64<<10) {
			t.Errorf("%d bytes: truncated %v, %d shown", size, got.Truncated, len(got.Body.(string)))
		}
	}
	for _, id := range []string{"", "a b", strings.Repeat("x", 65)} {
		if a := receive(id, `{}`); a.status != http.StatusUnprocessableEntity || a.problem(t).Code != tandem.CodeValidation {
			t.Errorf("%q: %d %s", id, a.status, a.body)
		}
	}
	if a := svc.get("/test-callback/never"); a.status != http.StatusNotFound {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func TestReceivedCallbacksAreBounded(t *testing.T) {
	t.Parallel()
	svc := start(t, nil)
	const kept = 1000
	for i := range kept + 2 {
		svc.do(http.MethodPost, "/test-callback", `{}`, fmt.Sprint("Webhook-Id: id-", i))
	}
	for id, want := range map[string]int{"id-0": 404, "id-1": 404, "id-2": 200, fmt.Sprint("id-", kept+1): 200} {
		if a := svc.get("/test-callback/" + id); a.status != want {
			t.Errorf("%s: %d, want %d", id, a.status, want)
		}
	}
}
