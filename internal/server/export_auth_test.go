package server

import (
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"tandem"
)

// TableRoute is a line of the table as tests of access see it.
type TableRoute struct {
	Method, Path, ID string
	Scope            tandem.Scope // what a key needs; "": no key is asked for
}

// Routes are all lines of the table, those of demo mode and of an application included.
func Routes(app *Application) (list []TableRoute) {
	s := &server{cfg: Config{Application: app}, inbox: newInbox(), log: slog.New(slog.DiscardHandler)}
	s.meters = &meters{registry: prometheus.NewRegistry()}
	for _, rt := range s.routes() {
		list = append(list, TableRoute{rt.Method, rt.documented(), rt.ID, rt.Access.scope()})
	}
	return list
}
