package server

import (
	_ "embed"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"tandem"
)

//go:embed pages/index.html
var indexPage []byte

// overview is the answer to GET / for programs.
type overview struct {
	Message       string            `json:"message" doc:"For people"`
	Version       string            `json:"version" doc:"Of tandem"`
	Status        string            `json:"status" enum:"running"`
	AsyncEnabled  bool              `json:"async_enabled" doc:"true: POST /async and background work are there"`
	DebugMode     bool              `json:"debug_mode" doc:"--debug"`
	UptimeSeconds float64           `json:"uptime_seconds" minimum:"0" doc:"Since the process started"`
	Endpoints     map[string]string `json:"endpoints" doc:"Name → path"`
}

// indexOf lists the routes that the document describes.
func indexOf(routes []Route) map[string]string {
	index := make(map[string]string, len(routes))
	for _, rt := range routes {
		if rt.ID != "" {
			index[rt.ID] = rt.documented()
		}
	}
	return index
}

// handleIndex shows a page to browsers and figures to programs.
func (s *server) handleIndex(w http.ResponseWriter, r *http.Request) error {
	w.Header().Add("Vary", "Accept")
	if prefersHTML(r.Header["Accept"]) {
		return writePage(w, plainPolicy, indexPage)
	}
	return WriteReply(w, r, overview{
		Message: "One engine, two ways to ask it for work, and the submissions of Random Corp. /docs shows how.",
		Version: tandem.Version, Status: "running", AsyncEnabled: true, DebugMode: s.cfg.Debug,
		UptimeSeconds: seconds(time.Since(s.started)), Endpoints: s.index,
	})
}

// prefersHTML reports whether an Accept header (RFC 9110, 12.5.1) likes HTML better
// than JSON. Programs mostly take anything and get JSON.
func prefersHTML(accept []string) bool {
	html, json := preference{}, preference{}
	for element := range strings.SplitSeq(strings.Join(accept, ","), ",") {
		media, params, err := mime.ParseMediaType(element)
		if err != nil {
			continue
		}
		q := 1.0
		if text, given := params["q"]; given {
			if q, err = strconv.ParseFloat(text, 64); err != nil || !(q >= 0 && q <= 1) {
				continue
			}
		}
		html.hear(media, q, "text/html")
		json.hear(media, q, "application/json")
	}
	return html.q > json.q
}

// preference is how much a media type is liked, as the most specific range says.
type preference struct {
	q       float64
	precise int // 1: */*, 2: text/*, 3: text/html
}

func (p *preference) hear(media string, q float64, want string) {
	kind, _, _ := strings.Cut(want, "/")
	precise := map[string]int{"*/*": 1, kind + "/*": 2, want: 3}[media]
	if precise > p.precise {
		p.q, p.precise = q, precise
	}
}
