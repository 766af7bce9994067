package audit

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

func tenantChecks() []Check {
	both := []Need{NeedKey, NeedSecondKey}
	const fix = "issue a key per tenant, without the scope admin; " +
		"let no proxy answer one caller with what it kept for another"
	return []Check{
		{
			ID: "tenant-request", Group: GroupTenants,
			Title: "Another's request looks like one that does not exist",
			Level: LevelQuick,
			Needs: both, Remediation: fix, Run: checkForeignRequest,
		},
		{
			ID: "tenant-list", Group: GroupTenants,
			Title: "Another's requests are in no list, whatever is asked for",
			Level: LevelQuick,
			Needs: both, Remediation: fix, Run: checkForeignLists(isHistory),
		},
		{
			ID: "tenant-submissions", Group: GroupTenants,
			Title: "Another's submissions are in no list and in no count",
			Level: LevelQuick,
			Needs: both, Remediation: fix, Run: checkForeignLists(isSubmissions),
		},
		{
			ID: "tenant-fairness", Group: GroupTenants,
			Title: "Nobody waits until all of another's work is done",
			Level: LevelFull, Needs: append(both, NeedReceiver),
			Remediation: "issue a key per tenant, and let the proxy pass each caller's own on: keys take turns, " +
				"and no flag of tandem changes that. Else report it as SECURITY.md says",
			Run: checkFairness,
		},
	}
}

// property is what the first key has made, for the second to look for.
type property struct {
	requests    []string // ids
	submissions []string // names and ids
	batch       string   // id of a batch
	total       int64    // submissions that the second key saw before; -1: none are counted
}

// property makes two requests, and a submission and a batch where there are such; the checks of tenants share them.
func (t *Target) property(ctx context.Context, v *verdict) (property, bool) {
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
		for _, o := range []Order{
			post("/api/submit", `{"firstName":"`+first+`","lastName":"Audit"}`),
			post("/api/submit/batch", `{"submissions":[{"firstName":"`+second+`","lastName":"Audit"}]}`),
		} {
			if a := t.send(ctx, o); a.Err != nil || a.Status != http.StatusOK || json.Unmarshal(a.Body, &reply) != nil {
				v.doubtf("make a submission with --api-key: %s", a)
				return p, false
			}
		}
		p.submissions, p.batch = []string{first, second, reply.ID}, reply.Batch
	}
	t.owned = &p
	return p, true
}

// checkForeignRequest compares, with the second key, a request of the first with one that nobody has.
func checkForeignRequest(ctx context.Context, t *Target) Finding {
	var v verdict
	own, ok := t.property(ctx, &v)
	if !ok {
		return v.finding()
	}
	id := own.requests[0]
	mine := t.send(ctx, Order{Path: "/requests/" + id})
	if mine.Err != nil || mine.Status != http.StatusOK {
		v.doubtf("its own key does not see it: %s", mine)
		return v.finding()
	}
	for _, op := range t.guarded() {
		if !strings.Contains(op.Path, "{id}") || op.admin() {
			continue
		}
		for _, header := range []map[string]string{
			nil, {"If-None-Match": mine.Header.Get("Etag")}, {"If-None-Match": "*"},
		} {
			if header != nil && (op.Method == http.MethodPost || header["If-None-Match"] == "") {
				continue
			}
			foreign, unknown := op.ask(id), op.ask(unknownID)
			foreign.Key, foreign.Header = t.cfg.SecondKey, header
			unknown.Key, unknown.Header = t.cfg.SecondKey, header
			a, b := t.send(ctx, foreign), t.send(ctx, unknown)
			a.Sent += " with --second-api-key"
			if b.Err != nil {
				v.expect(b, false, "")
				continue
			}
			same := strings.ReplaceAll(refusalText(b), unknownID, id) == refusalText(a) &&
				a.Header.Get("Etag") == b.Header.Get("Etag")
			v.expect(a, a.Status == b.Status && a.denied(), "want "+b.String())
			v.expect(a, same, "told apart from one that does not exist: "+oneLine(refusalText(b)))
		}
		if op.Method != http.MethodGet {
			continue
		}
		for _, path := range t.spellings(op.target(id)) {
			a := t.send(ctx, Order{Path: path, Key: t.cfg.SecondKey})
			a.Sent += " with --second-api-key"
			v.turnedAway(a, false)
		}
	}
	return v.finding()
}

// isHistory and isSubmissions distinguish the lists.
func isHistory(op operation) bool     { return !isSubmissions(op) }
func isSubmissions(op operation) bool { return strings.HasPrefix(op.Path, "/api/") }

// lists are the operations that answer callers with many of something.
func (t *Target) lists(of func(operation) bool) []operation {
	return slices.DeleteFunc(slices.Clone(t.operations), func(op operation) bool {
		paged := slices.ContainsFunc(op.Queries, func(p parameter) bool { return p.Name == "limit" })
		return op.Method != http.MethodGet || op.open() || op.admin() || strings.Contains(op.Path, "{") ||
			!paged && op.Path != "/requests" || !of(op)
	})
}

// queries are the questions that a list takes, each parameter on its own, and all that narrow it together.
func (t *Target) queries(ctx context.Context, op operation, own property) []string {
	now := time.Now()
	values := map[string][]string{
		"limit":  {"1", "100"}, // with 1 even the Link of a HEAD shows that there is more
		"offset": {"0", "1"}, "task": {"echo", "submission"}, "batch_id": {own.batch},
		"since": {now.Add(-time.Hour).UTC().Format(time.RFC3339)},
		"until": {now.Add(time.Hour).UTC().Format(time.RFC3339)},
	}
	first := t.send(ctx, Order{Path: op.Path + "?limit=1"})
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

// checkForeignLists asks every list for every filter and cursor with the second key: nothing of the first may be in
// an answer, and HEAD must say what GET says.
func checkForeignLists(of func(operation) bool) func(context.Context, *Target) Finding {
	return func(ctx context.Context, t *Target) Finding {
		var v verdict
		own, ok := t.property(ctx, &v)
		if !ok {
			return v.finding()
		}
		for _, op := range t.lists(of) {
			mine := t.send(ctx, Order{Path: op.Path + "?limit=100"})
			marks := slices.Concat(own.requests, own.submissions)
			if holds(mine, marks) == "" {
				v.doubtf("%s does not list it for its own key either", mine)
			}
			for _, query := range t.queries(ctx, op, own) {
				t.lookThrough(ctx, &v, op.Path+query, marks, mine.Header.Get("Etag"))
			}
		}
		if after := t.total(ctx, of); own.total >= 0 && after > own.total && v.failed == nil {
			v.failf("the total that --second-api-key sees went from %d to %d when --api-key submitted something",
				own.total, after)
		}
		return v.finding()
	}
}

// lookThrough asks one list with the second key, in every way that could say something about the first.
func (t *Target) lookThrough(ctx context.Context, v *verdict, path string, marks []string, tag string) {
	get := t.send(ctx, Order{Path: path, Key: t.cfg.SecondKey})
	get.Sent += " with --second-api-key"
	if get.Err == nil && get.Status >= http.StatusInternalServerError {
		v.doubtf("%s", get)
		return
	}
	found := holds(get, marks)
	v.expect(get, found == "", "it lists "+oneLine(found))
	head := t.send(ctx, Order{Method: http.MethodHead, Path: path, Key: t.cfg.SecondKey})
	head.Sent += " with --second-api-key"
	same := head.Status == get.Status && head.Header.Get("Link") == get.Header.Get("Link") && sameLength(head, get)
	if head.Err == nil && !same { // something of its own may have come in between
		get = t.send(ctx, Order{Path: path, Key: t.cfg.SecondKey})
		same = head.Status == get.Status && sameLength(head, get)
	}
	v.expect(head, same, "it says something else than GET")
	if tag != "" {
		a := t.send(ctx, Order{Path: path, Key: t.cfg.SecondKey, Header: map[string]string{"If-None-Match": tag}})
		v.expect(a, a.Status != http.StatusNotModified, "it is not modified for whom it is not")
	}
}

// holds returns the first of the marks that an answer has anywhere; "" for none.
func holds(a Answer, marks []string) string {
	for _, mark := range marks {
		if mark != "" && strings.Contains(string(a.Body), mark) {
			return mark
		}
	}
	return ""
}

// sameLength reports whether HEAD announces as many bytes as GET sent; it may leave that open.
func sameLength(head, get Answer) bool {
	announced := head.Header.Get("Content-Length")
	return announced == "" || announced == strconv.Itoa(len(get.Body))
}

// total is the count of everything in a list that has one, as the second key sees it; -1 if there is none.
func (t *Target) total(ctx context.Context, of func(operation) bool) int64 {
	for _, op := range t.lists(of) {
		var page struct {
			Total *int64 `json:"total"`
		}
		a := t.send(ctx, Order{Path: op.Path + "?limit=1", Key: t.cfg.SecondKey})
		if a.Err == nil && a.Status == http.StatusOK && json.Unmarshal(a.Body, &page) == nil && page.Total != nil {
			return *page.Total
		}
	}
	return -1
}
