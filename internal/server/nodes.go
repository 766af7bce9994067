package server

import (
	"net/http"
	"time"
)

// node is a line of GET /nodes.
type node struct {
	ID      string    `json:"id" doc:"Anew with every start"`
	Name    string    `json:"name" doc:"Of its machine"`
	Version string    `json:"version" doc:"Of tandem"`
	Address string    `json:"address" doc:"Where it listens" example:"127.0.0.1:8000"`
	Since   time.Time `json:"since" doc:"When it joined, by the clock of the database"`
	SeenAt  time.Time `json:"seen_at" doc:"Its last sign of life, by the same clock. One that gives none for 8 seconds is taken for dead, and disappears from here"`
	This    bool      `json:"this_node" doc:"It is the one that answers"`
}

// handleNodes lists who shares the database.
func (s *server) handleNodes(r *http.Request) ([]node, error) {
	known, err := s.cfg.Nodes.List(r.Context())
	if err != nil {
		return nil, err
	}
	nodes := make([]node, len(known))
	for i, n := range known {
		nodes[i] = node{n.ID, n.Name, n.Version, n.Address, n.Since.UTC(), n.Seen.UTC(), n.This}
	}
	return nodes, nil
}
