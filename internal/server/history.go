package server

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"tandem"
	"tandem/internal/store"
)

const (
	pageData     = 7 << 20 // bytes of data and results in a page that is not written in chunks
	defaultLimit = 100
	maxLimit     = 1_000
	maxOffset    = 10_000
	maxTaskName  = 64
)

// entry is a request as GET /requests/{id} shows it: with its log of attempts,
// even when that is empty.
type entry struct {
	tandem.Request
	Attempts []tandem.Attempt `json:"attempts"`
}

// handleEntry shows everything known about one request.
func (s *server) handleEntry(r *http.Request) (entry, error) {
	found, err := s.cfg.Store.Request(r.Context(), r.PathValue("id"))
	if err == nil && !caller(r).Sees(&found) {
		err = store.NotFound(r.PathValue("id")) // in the words for one that does not exist
	}
	if err != nil {
		return entry{}, err
	}
	return entry{found, append([]tandem.Attempt{}, found.Attempts...)}, nil
}

// nextURL is where the page after this one is: the same filters, and the
// cursor in place of an offset.
func nextURL(here *url.URL, cursor string) string {
	query := here.Query()
	query.Del("offset")
	query.Set("cursor", cursor)
	return here.EscapedPath() + "?" + query.Encode()
}

// parseFilter reads the query of GET /requests and reports everything that is
// wrong with it at once. An unknown name is an error: a misspelt filter that
// is silently ignored shows the wrong requests.
func parseFilter(raw string) (store.Filter, error) { return parseQuery(raw, filterFields) }

// parseQuery is parseFilter for a set of names.
func parseQuery(raw string, names filters) (store.Filter, error) {
	filter := store.Filter{Limit: defaultLimit, MaxBytes: pageData}
	query, err := url.ParseQuery(raw)
	if err != nil {
		return filter, invalid([]tandem.FieldError{{Location: "query", Message: "must be percent-encoded",
			Value: shorten(raw)}})
	}
	var wrong []tandem.FieldError
	for _, name := range slices.Sorted(maps.Keys(query)) {
		value := query[name][0]
		if message := names.read(&filter, name, query[name]); message != "" {
			wrong = append(wrong, tandem.FieldError{Location: "query." + shorten(name), Message: message, Value: shorten(value)})
		}
	}
	if query.Has("cursor") && query.Has("offset") {
		wrong = append(wrong, tandem.FieldError{Location: "query.offset", Message: "cannot be combined with cursor",
			Value: shorten(query.Get("offset"))})
	}
	if wrong != nil {
		return filter, invalid(wrong)
	}
	return filter, nil
}

// filters are what a query may name, each with what reads its value and returns what
// was expected of one that cannot be used.
// :: name → parser
type filters map[string]func(f *store.Filter, value string) (expected string)

// read reads one query parameter.
func (names filters) read(filter *store.Filter, name string, values []string) (expected string) {
	parse, ok := names[name]
	switch {
	case !ok:
		return "is unknown; there are " + strings.Join(slices.Sorted(maps.Keys(names)), ", ")
	case len(values) > 1:
		return "must be given once"
	case !utf8.ValidString(values[0]) || strings.Contains(values[0], "\x00"): // PostgreSQL would refuse the statement
		return "must be UTF-8 without NUL"
	default:
		return parse(filter, values[0])
	}
}

// filterFields are the parameters of GET /requests.
var filterFields = filters{
	"mode": func(f *store.Filter, v string) string {
		f.Mode = tandem.Mode(v)
		return oneOf(tandem.Modes, f.Mode)
	},
	"status": func(f *store.Filter, v string) string {
		f.Status = tandem.Status(v)
		return oneOf(tandem.Statuses, f.Status)
	},
	"task": func(f *store.Filter, v string) string {
		f.Task = v
		if v == "" || len(v) > maxTaskName {
			return "must be the name of a task"
		}
		return ""
	},
	"since":  func(f *store.Filter, v string) string { return parseTime(&f.Since, v) },
	"until":  func(f *store.Filter, v string) string { return parseTime(&f.Until, v) },
	"limit":  func(f *store.Filter, v string) string { return parseInt(&f.Limit, v, 1, maxLimit) },
	"offset": func(f *store.Filter, v string) string { return parseInt(&f.Offset, v, 0, maxOffset) },
	"cursor": func(f *store.Filter, v string) string {
		f.Cursor = v
		if v == "" {
			return "must be the cursor of a Link header"
		}
		return ""
	},
}

// oneOf is empty when value is allowed, else what is.
func oneOf[T ~string](allowed []T, value T) string {
	if slices.Contains(allowed, value) {
		return ""
	}
	names := make([]string, len(allowed))
	for i, a := range allowed {
		names[i] = string(a)
	}
	return "must be one of " + strings.Join(names, ", ")
}

// parseTime takes any offset; the store compares in UTC.
func parseTime(target *time.Time, value string) string {
	t, err := time.Parse(time.RFC3339, value)
	if err != nil {
		return "must be an RFC 3339 time such as 2026-01-31T12:00:00Z (write + as %2B)"
	}
	*target = t.UTC()
	return ""
}

func parseInt(target *int, value string, least, most int) string {
	n, err := strconv.Atoi(value)
	if err != nil || n < least || n > most {
		return "must be an integer from " + strconv.Itoa(least) + " to " + strconv.Itoa(most)
	}
	*target = n
	return ""
}
