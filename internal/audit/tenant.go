package audit

import (
	"context"
	"crypto/rand"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// property is the first key's data, for the second key to look for.
type property struct {
	requests    []string // ids
	submissions []string // names and ids
	batch       string   // id of a batch
	total       int64    // submissions visible to the second key before; -1: none are counted
}

// property makes two requests, and a submission and a batch where there are such; the checks of tenants share them.
func (t *target) property(ctx context.Context, v *verdict) (property, bool) {
	if t.owned != nil {
		return *t.owned, true
	}
	p := property{total: t.total(ctx, isSubmissions)}
	for range 2 {
		a := t.send(ctx, post("/sync", echoBody))
		if a.Err != nil || a.Status != http.StatusOK || a.requestID() == "" {
			v.doubtf("make a request with --api-key: %s", a)
			return p, false
		}
		p.requests = append(p.requests, a.requestID())
	}
	name := func() string { return "Audit" + strings.ToLower(rand.Text()[:10]) }
	var reply struct {
		ID    string `json:"submissionId"` //nolint:tagliatelle // the API's
		Batch string `json:"batch_id"`
	}
	first, second := name(), name()
	if slices.ContainsFunc(t.operations, func(op operation) bool { return op.Path == "/api/submit" }) {
		for _, o := range []probe{
			post("/api/submit", `{"firstName":"`+first+`","lastName":"Audit"}`),
			post("/api/submit/batch", `{"submissions":[{"firstName":"`+second+`","lastName":"Audit"}]}`),
		} {
			if a := t.send(ctx, o); !a.decode(&reply) {
				v.doubtf("make a submission with --api-key: %s", a)
				return p, false
			}
		}
		p.submissions, p.batch = []string{first, second, reply.ID}, reply.Batch
	}
	t.owned = &p
	return p, true
}

// checkForeignRequest compares, with the second key, a request of the first with an unknown one.
func checkForeignRequest(ctx context.Context, t *target, v *verdict) {
	own, ok := t.property(ctx, v)
	if !ok {
		return
	}
	id := own.requests[0]
	mine := t.send(ctx, probe{Path: "/requests/" + id})
	if mine.Err != nil || mine.Status != http.StatusOK {
		v.doubtf("its own key does not see it: %s", mine)
		return
	}
	for _, op := range t.guarded() {
		if !strings.Contains(op.Path, "{id}") || op.admin() {
			continue
		}
		t.compareForeign(ctx, v, op, id, "")
		if op.Method != http.MethodPost {
			if tag := mine.Header.Get("Etag"); tag != "" {
				t.compareForeign(ctx, v, op, id, tag)
			}
			t.compareForeign(ctx, v, op, id, "*")
		}
		if op.Method == http.MethodGet {
			for _, path := range t.spellings(op.target(id)) {
				v.denied(t.send(ctx, probe{Path: path, Key: t.cfg.SecondKey}), false)
			}
		}
	}
}

// compareForeign does so for one operation, with If-None-Match where there is a tag.
func (t *target) compareForeign(ctx context.Context, v *verdict, op operation, id, tag string) {
	ask := func(id string) answer {
		p := op.ask(id)
		p.Key = t.cfg.SecondKey
		if tag != "" {
			p = p.with("If-None-Match", tag)
		}
		return t.send(ctx, p)
	}
	a, b := ask(id), ask(unknownID)
	if b.Err != nil {
		v.doubtf("%s", b)
		return
	}
	same := strings.ReplaceAll(b.words(), unknownID, id) == a.words() && a.Header.Get("Etag") == b.Header.Get("Etag")
	v.expect(a, a.Status == b.Status && a.denied(), "want "+b.String())
	v.expect(a, same, "it differs from an unknown one: "+oneLine(b.words()))
}

// The kinds of lists.
func isAnyList(operation) bool        { return true }
func isHistory(op operation) bool     { return !isSubmissions(op) }
func isSubmissions(op operation) bool { return strings.HasPrefix(op.Path, "/api/") }

// lists are the operations with a list as their answer.
func (t *target) lists(of func(operation) bool) []operation {
	return slices.DeleteFunc(slices.Clone(t.operations), func(op operation) bool {
		paged := slices.ContainsFunc(op.Queries, func(p parameter) bool { return p.Name == "limit" })
		return op.Method != http.MethodGet || op.open() || op.admin() || strings.Contains(op.Path, "{") ||
			!paged && op.Path != "/requests" || !of(op)
	})
}

// queries are the queries of a list, each parameter on its own, and all filters together.
func (t *target) queries(ctx context.Context, op operation, own property) []string {
	now := time.Now()
	values := map[string][]string{
		"limit":  {"1", "100"}, // with 1 even the Link of a HEAD reveals more entries
		"offset": {"0", "1"}, "task": {"echo", "submission"}, "batch_id": {own.batch},
		"since": {now.Add(-time.Hour).UTC().Format(time.RFC3339)},
		"until": {now.Add(time.Hour).UTC().Format(time.RFC3339)},
	}
	first := t.send(ctx, probe{Path: op.Path + "?limit=1"})
	if link, _, found := strings.Cut(first.Header.Get("Link"), ">"); found {
		if next, err := url.Parse(strings.TrimPrefix(link, "<")); err == nil {
			values["cursor"] = []string{next.Query().Get("cursor")}
		}
	}
	all := []string{"", "?mode=sync&status=completed&task=echo&limit=100"}
	if isSubmissions(op) {
		all = all[:1]
	}
	for _, p := range op.Queries {
		for _, value := range slices.Concat(p.Values, values[p.Name]) {
			if value != "" {
				all = append(all, "?"+url.QueryEscape(p.Name)+"="+url.QueryEscape(value))
			}
		}
	}
	return all
}

// checkForeignLists asks every list for every filter and cursor with the second key: nothing of the first may be in an
// answer, and HEAD must agree with GET.
func checkForeignLists(of func(operation) bool) checkFunc {
	return func(ctx context.Context, t *target, v *verdict) {
		own, ok := t.property(ctx, v)
		if !ok {
			return
		}
		marks := slices.Concat(own.requests, own.submissions)
		for _, op := range t.lists(of) {
			mine := t.send(ctx, probe{Path: op.Path + "?limit=100"})
			if holds(mine, marks) == "" {
				v.doubtf("%s does not list it for its own key either", mine)
			}
			for _, query := range t.queries(ctx, op, own) {
				t.lookThrough(ctx, v, op.Path+query, marks, mine.Header.Get("Etag"))
			}
		}
		if after := t.total(ctx, of); own.total >= 0 && after > own.total && v.failed == nil {
			v.failf("the total that --second-api-key sees went from %d to %d when --api-key submitted something",
				own.total, after)
		}
	}
}

// lookThrough asks for one list with the second key, in every way to reveal something of the first.
func (t *target) lookThrough(ctx context.Context, v *verdict, path string, marks []string, tag string) {
	p := probe{Path: path, Key: t.cfg.SecondKey}
	get := t.send(ctx, p)
	if get.Err == nil && get.Status >= http.StatusInternalServerError {
		v.doubtf("%s", get)
		return
	}
	found := holds(get, marks)
	v.expect(get, found == "", "it lists "+oneLine(found))
	p.Method = http.MethodHead
	head := t.send(ctx, p)
	p.Method = ""
	same := head.Status == get.Status && head.Header.Get("Link") == get.Header.Get("Link") && sameLength(head, get)
	if head.Err == nil && !same { // something of its own may have come in between
		get = t.send(ctx, p)
		same = head.Status == get.Status && sameLength(head, get)
	}
	v.expect(head, same, "it says something else than GET")
	if tag != "" {
		a := t.send(ctx, p.with("If-None-Match", tag))
		v.expect(a, a.Status != http.StatusNotModified, "the tag of --api-key's answer matches for another key")
	}
}

// holds returns the first mark found in an answer; "": none.
func holds(a answer, marks []string) string {
	for _, mark := range marks {
		if mark != "" && strings.Contains(string(a.Body), mark) {
			return mark
		}
	}
	return ""
}

// sameLength reports whether HEAD announces as many bytes as GET sent; no length is fine.
func sameLength(head, get answer) bool {
	announced := head.Header.Get("Content-Length")
	return announced == "" || announced == strconv.Itoa(len(get.Body))
}

// total is the count of everything in a list, as the second key sees it; -1: no list has a count.
func (t *target) total(ctx context.Context, of func(operation) bool) int64 {
	for _, op := range t.lists(of) {
		var page struct {
			Total *int64 `json:"total"`
		}
		a := t.send(ctx, probe{Path: op.Path + "?limit=1", Key: t.cfg.SecondKey})
		if a.decode(&page) && page.Total != nil {
			return *page.Total
		}
	}
	return -1
}
