package server

import (
	"log/slog"

	"tandem"
)

// Route is a line of the table as tests of access see it.
type Route struct {
	Method, Path, ID string
	Scope            tandem.Scope // what a key needs; "": no key is asked for
}

// Routes are all lines of the table, those of demo mode included.
func Routes() (list []Route) {
	s := &server{inbox: newInbox(), log: slog.New(slog.DiscardHandler)}
	s.meters = newMeters(s)
	for _, rt := range s.routes() {
		list = append(list, Route{rt.method, rt.documented(), rt.id, rt.access.scope()})
	}
	return list
}
