package server_test

import (
	"errors"
	"net/url"
	"strings"
	"testing"

	"tandem"
	"tandem/internal/server"
)

// FuzzQuery holds the filters of GET /requests against what they promise:
// whatever is let through is within its bounds, and whatever is not says why.
func FuzzQuery(f *testing.F) {
	for _, seed := range []string{
		"", "mode=sync", "mode=both", "status=callback_sent&task=echo", "limit=1000&offset=10000", "limit=1001", "limit=-1",
		"limit=1e2", "limit=0x10",
		"since=2026-01-31T12:00:00Z&until=2026-01-31T12:00:00%2B02:00", "since=yesterday", "since=0000-01-01T00:00:00Z",
		"until=9999-12-31T23:59:59Z",
		"cursor=cmVxXzAxOTM4ZjdlMmI2YTdjNWQ4ZTlmMGExYjJjM2Q0ZTVm", "cursor=x&offset=1", "cursor=", "mode=sync&mode=sync",
		"Mode=sync", "%zz", "a;b=c", "limit=%31",
		"task=%00", "task=a%00b", "task=%ff", "task=%ed%a0%80", "cursor=%00",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		filter, err := server.ParseFilter(raw)
		if err != nil {
			known, ok := errors.AsType[*tandem.Error](err)
			if !ok || known.Code != tandem.CodeValidation || len(known.Fields) == 0 {
				t.Fatalf("%q: %v, want a %s that names the parameters", raw, err, tandem.CodeValidation)
			}
			if len(known.Fields) > 1+strings.Count(raw, "&")+1 {
				t.Fatalf("%q: %d complaints", raw, len(known.Fields))
			}
			return
		}
		query, err := url.ParseQuery(raw)
		if err != nil {
			t.Fatalf("let through %q: %v", raw, err)
		}
		for name, values := range query {
			if len(values) != 1 || name != strings.ToLower(name) ||
				strings.ToValidUTF8(values[0], "") != values[0] || strings.Contains(values[0], "\x00") {
				t.Fatalf("let through %q", raw)
			}
		}
		switch {
		case filter.Limit < 1 || filter.Limit > 1000, filter.Offset < 0 || filter.Offset > 10_000, filter.MaxBytes <= 0,
			filter.Cursor != "" && query.Has("offset"), filter.Cursor != query.Get("cursor"), filter.Task != query.Get("task"),
			len(filter.Task) > 64,
			string(filter.Mode) != query.Get("mode"), string(filter.Status) != query.Get("status"), query.Has("status") &&
				!filter.Status.Valid(),
			filter.Since.IsZero() && query.Has("since") && !strings.HasPrefix(query.Get("since"), "0001-01-0"):
			t.Fatalf("%q became %+v", raw, filter)
		}
	})
}
