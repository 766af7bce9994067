package server

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// contactHolds is for how long a reader may rely on security.txt; a running server renews it.
const contactHolds = 90 * 24 * time.Hour

// handleSecurityTxt says whom to tell of a vulnerability (RFC 9116).
func (s *server) handleSecurityTxt(w http.ResponseWriter, r *http.Request) error {
	if s.cfg.SecurityContact == "" {
		return notFound(w, r)
	}
	until := time.Now().UTC().Truncate(24 * time.Hour).Add(contactHolds)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-cache")
	_, _ = w.Write([]byte("Contact: " + s.cfg.SecurityContact + "\nExpires: " + until.Format(time.RFC3339) +
		"\nPreferred-Languages: en\n")) // fails only when the caller has gone
	return nil
}

// ValidContact says what is wrong with a value for [Config].SecurityContact.
func ValidContact(contact string) error {
	if contact == "" {
		return nil
	}
	address, err := url.Parse(contact)
	full := err == nil && (address.Scheme == "mailto" && strings.Contains(address.Opaque, "@") ||
		address.Scheme == "https" && address.Host != "")
	if !full || strings.ContainsAny(contact, " \t") {
		return errors.New("want an address such as mailto:security@example.com or https://example.com/security")
	}
	return nil
}
