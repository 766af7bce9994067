package server_test

import (
	"encoding/json"
	"testing"
	"time"

	"tandem"
	"tandem/internal/store"
)

// On SQLite a node is alone.
func TestNodesOfOne(t *testing.T) {
	t.Parallel()
	known := store.NewNodes("here:8000")
	svc := start(t, func(s *setup) { s.store.Nodes, s.server.Nodes = known, known })
	var nodes []struct {
		ID      string    `json:"id"`
		Name    string    `json:"name"`
		Version string    `json:"version"`
		Address string    `json:"address"`
		Since   time.Time `json:"since"`
		SeenAt  time.Time `json:"seen_at"`
		This    bool      `json:"this_node"`
	}
	if err := json.Unmarshal([]byte(svc.get("/nodes").body), &nodes); err != nil || len(nodes) != 1 {
		t.Fatalf("%+v, %v, want one", nodes, err)
	}
	n := nodes[0]
	if n.ID == "" || n.Name == "" || n.Version != tandem.Version || n.Address != "here:8000" || !n.This {
		t.Errorf("%+v", n)
	}
	if age := time.Since(n.Since); age < 0 || age > time.Hour || n.SeenAt.Before(n.Since) {
		t.Errorf("there since %v, last seen %v", n.Since, n.SeenAt)
	}
}
