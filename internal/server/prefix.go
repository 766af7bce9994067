package server

import (
	"errors"
	"net/http"
	"net/url"
	"path"
	"strings"
)

const maxPrefix = 256 // bytes of an X-Forwarded-Prefix

// prefix is the path under which the caller reaches this server; "" at the root of a host. A proxy
// that strips a path such as /tandem names it in X-Forwarded-Prefix; otherwise --base-url counts.
// Answers that name a path, in Location or Link, put it in front. Pages and the OpenAPI document
// need nothing: their links are relative.
func (s *server) prefix(r *http.Request) string {
	given := r.Header["X-Forwarded-Prefix"]
	if len(given) != 1 {
		return s.base
	}
	peer, ok := parseHop(r.RemoteAddr)
	said := strings.TrimRight(given[0], "/")
	if !ok || !s.trusts(peer) || said != "" && !isPrefix(said) {
		return s.base
	}
	return said
}

// isPrefix reports whether a text is a path that can stand in front of ours and stay on the same host.
func isPrefix(text string) bool {
	const others = "-._~%/@:+"
	return len(text) <= maxPrefix && strings.HasPrefix(text, "/") && path.Clean(text) == text &&
		!strings.ContainsFunc(text, func(r rune) bool { return notInName(r) && !strings.ContainsRune(others, r) })
}

// parseBaseURL reads a value for [Config].BaseURL: the name of its host and its path, without a slash at the end.
func parseBaseURL(text string) (host, prefix string, err error) {
	if text == "" {
		return "", "", nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return "", "", errors.New("want a URL such as https://example.com/tandem")
	}
	if u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return "", "", errors.New("want a URL without user name, query and fragment")
	}
	prefix = strings.TrimRight(u.EscapedPath(), "/")
	if prefix != "" && !isPrefix(prefix) {
		return "", "", errors.New("want a path of letters, digits and -._~%@:+, without empty, . and .. segments")
	}
	return u.Hostname(), prefix, nil
}

// ValidBaseURL says what is wrong with a value for [Config].BaseURL.
func ValidBaseURL(text string) error {
	_, _, err := parseBaseURL(text)
	return err
}
