package server

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"

	"tandem"
	"tandem/internal/store"
)

// A list is read from the store and written in chunks, so that one reader holds a chunk and not a page.
const (
	maxPage    = 8 << 20   // bytes of an answer of GET /requests, unless a single request is larger
	chunkRows  = 100       // requests in a chunk
	chunkData  = 256 << 10 // bytes of data and results in a chunk, unless a single request has more
	listMemory = 512 << 10 // bytes that a chunk takes, rendered, with names, times and URLs
)

// handleList shows a page of the history.
func (s *server) handleList(w http.ResponseWriter, r *http.Request) error {
	filter, err := parseFilter(r.URL.RawQuery)
	if err != nil {
		return err
	}
	filter.Key = owned(r)
	if err := hold(w, r, listMemory); err != nil {
		return err
	}
	p, err := s.survey(r.Context(), filter)
	if err != nil {
		return err
	}
	if p.largest > listMemory { // a request larger than a chunk
		if err := hold(w, r, p.largest); err != nil {
			return err
		}
	}
	if p.next != "" {
		w.Header().Set("Link", "<"+s.prefix(r)+nextURL(r.URL, p.next)+`>; rel="next"`)
	}
	header := w.Header()
	header["Content-Type"], header["Cache-Control"] = contentTypeJSON, noStore
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		s.writeList(w, r, filter, p)
	}
	return nil
}

// listPage is what has to be known of a page before its first byte is written.
type listPage struct {
	first   []byte // the first chunk as JSON, without the bracket at the end
	largest int    // bytes of the largest chunk
	cursor  string // of the second chunk; "": there is none on this page
	last    string // id of the last request on the page
	next    string // cursor of the page after this one; "": there is none
}

// survey reads through a page, because Link comes before the body, and keeps its first chunk. Chunks are never split,
// so that the cursors are the store's own.
func (s *server) survey(ctx context.Context, filter store.Filter) (p listPage, err error) {
	part := filter
	for count, size := 0, 0; ; {
		page, err := s.chunk(ctx, &part, filter.Limit-count)
		if err != nil {
			return p, err
		}
		most := mostBytes(page.Requests)
		if size += most; count > 0 && size >= maxPage {
			return p, nil // this chunk begins the next page, to which p.next leads
		}
		if count == 0 {
			var chunk bytes.Buffer
			if err := renderChunk(&chunk, page, true); err != nil {
				return p, err
			}
			p.first = chunk.Bytes()
		} else if p.cursor == "" {
			p.cursor = p.next
		}
		count, p.largest = count+len(page.Requests), max(p.largest, most)
		if p.next = page.Next; len(page.Requests) > 0 {
			p.last = page.Requests[len(page.Requests)-1].ID
		}
		if p.next == "" || count >= filter.Limit {
			return p, nil
		}
	}
}

// mostBytes is how many bytes requests can have as JSON.
func mostBytes(requests []tandem.Request) (n int) {
	const names = 1 << 10 // bytes of a request beside its texts
	for i := range requests {
		r := &requests[i]
		n += names + len(r.Data) + len(r.Result) + len(r.CallbackURL) + len(r.ErrorMessage)
	}
	return n
}

// chunk reads the next chunk of at most so many requests, and moves part on.
func (s *server) chunk(ctx context.Context, part *store.Filter, most int) (store.Page, error) {
	part.Limit, part.MaxBytes = min(chunkRows, most), chunkData
	page, err := s.cfg.Store.Requests(ctx, *part)
	part.Cursor, part.Offset = page.Next, 0
	return page, err
}

// writeList writes a page. What has changed since the survey shows, but the page ends where it said.
func (s *server) writeList(w http.ResponseWriter, r *http.Request, filter store.Filter, p listPage) {
	if _, err := w.Write(p.first); err != nil {
		return // the caller has gone, or does not read
	}
	p.first = nil
	part := filter
	part.Cursor, part.Offset = p.cursor, 0
	for part.Cursor != "" {
		chunk, err := s.nextChunk(r.Context(), &part, p.last)
		if err != nil {
			s.log.ErrorContext(r.Context(), "read the rest of a list",
				"error", err, "x_request_id", w.Header().Get(headerRequestID))
			panic(http.ErrAbortHandler) // a part has been sent: the caller must see that the list is not whole
		}
		if _, err := w.Write(chunk); err != nil { //nolint:gosec // JSON, with nosniff
			return
		}
	}
	_, _ = w.Write([]byte("]\n")) // fails only when the caller has gone
}

// nextChunk renders the requests after part's cursor, up to the last of the page, and moves part on.
// It retains nothing that it has read, because the reader may be slow.
func (s *server) nextChunk(ctx context.Context, part *store.Filter, last string) ([]byte, error) {
	page, err := s.chunk(ctx, part, chunkRows)
	if err != nil {
		return nil, err
	}
	for i := range page.Requests {
		if page.Requests[i].ID < last {
			page.Requests, part.Cursor = page.Requests[:i], ""
			break
		}
	}
	var chunk bytes.Buffer
	err = renderChunk(&chunk, page, false)
	return chunk.Bytes(), err
}

// renderChunk appends requests to a JSON array that first begins.
func renderChunk(to *bytes.Buffer, page store.Page, first bool) error {
	encoder := json.NewEncoder(to)
	encoder.SetEscapeHTML(false)
	for i := range page.Requests {
		if first && i == 0 {
			to.WriteByte('[')
		} else {
			to.WriteByte(',')
		}
		page.Requests[i].Attempts = nil
		if err := encoder.Encode(&page.Requests[i]); err != nil {
			return err
		}
	}
	if first && len(page.Requests) == 0 {
		to.WriteByte('[')
	}
	return nil
}
