package server

import "tandem/internal/store"

// ParseFilter reads the query of GET /requests.
func ParseFilter(raw string) (store.Filter, error) { return parseFilter(raw) }
