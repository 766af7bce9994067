package server

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/jub0bs/cors"

	"tandem"
)

// withCORS answers preflights and marks answers for the configured origins. There
// are no credentials to share: the API knows no cookies.
func (s *server) withCORS(next http.Handler) (http.Handler, error) {
	if len(s.cfg.CORSOrigins) == 0 {
		return next, nil
	}
	middleware, err := cors.NewMiddleware(cors.Config{
		Origins: s.cfg.CORSOrigins,
		Methods: []string{http.MethodGet, http.MethodHead, http.MethodPost},
		RequestHeaders: []string{
			"Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "Prefer",
			"traceparent", "tracestate", headerRequestID,
		},
		ResponseHeaders: []string{"ETag", "Location", "Link", "RateLimit", "RateLimit-Policy", "Retry-After",
			headerRequestID, "X-Process-Time"},
	})
	if err != nil {
		return nil, fmt.Errorf("configure CORS: %w", err)
	}
	marked := middleware.Wrap(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// All there is to tell a program is Vary, which is for caches, and none keeps the answer to
		// a POST. With it a 202 has nine headers; up to eight a map is cheap.
		if r.Method == http.MethodPost && len(r.Header["Origin"]) == 0 {
			next.ServeHTTP(w, r)
			return
		}
		marked.ServeHTTP(w, r)
	}), nil
}

// ValidOrigins says what is wrong with a list for [Config].CORSOrigins, before anything is started for it.
func ValidOrigins(origins []string) error {
	if len(origins) == 0 {
		return nil
	}
	if strings.Contains(strings.Join(origins, ""), "*") {
		return errors.New("name each origin: a pattern lets in whoever can have a name that fits")
	}
	_, err := cors.NewMiddleware(cors.Config{Origins: origins})
	return err
}

// sameOrigin refuses what a browser sends for a page of somebody else, unless its origin is
// configured: a script or a form in a visitor's browser must not use the network that it stands in.
// Programs, and receivers of callbacks, send no Origin and pass. Reading is CORS' business.
func (s *server) sameOrigin(next http.Handler) (http.Handler, error) {
	protection := http.NewCrossOriginProtection()
	for _, origin := range s.cfg.CORSOrigins {
		if err := protection.AddTrustedOrigin(origin); err != nil {
			return nil, fmt.Errorf("trust origin: %w", err)
		}
	}
	protection.SetDenyHandler(s.adapt(func(http.ResponseWriter, *http.Request) error {
		return tandem.Errorf(tandem.CodeCrossOrigin,
			"A browser sent this for a page of another origin. The operator can name the origins that may, with --cors-origin.")
	}))
	return protection.Handler(next), nil
}
