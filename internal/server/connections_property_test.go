package server_test

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"tandem/internal/server"
)

// peer is a connection as the table sees it.
type peer struct {
	net.Conn
	from   netip.Addr
	active bool
	closed bool
}

func (p *peer) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(p.from, 4711))
}

func (p *peer) Close() error { p.closed = true; return nil }

// Whatever comes and goes: there are never more than may be, nobody has more than a share, nothing is
// closed while a request is being answered on it, and what makes room has waited longest.
func TestConnectionsProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.IntRange(1, 100).Draw(t, "most")
		share := max(most/4, 16)
		table := server.NewConnections(most, nil)
		var open []*peer // in the order in which they began to wait; those that are active anywhere
		has := func(from netip.Addr) (n int) {
			for _, p := range open {
				if p.from == from {
					n++
				}
			}
			return n
		}
		toEnd := func(i int) { p := open[i]; open = append(slices.Delete(open, i, i+1), p) }
		for range rapid.IntRange(1, 400).Draw(t, "steps") {
			if len(open) == 0 || rapid.IntRange(0, 2).Draw(t, "what") == 0 {
				p := &peer{from: netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", rapid.IntRange(1, 8).Draw(t, "client")))}
				longest := slices.IndexFunc(open, func(p *peer) bool { return !p.active })
				want := has(p.from) < share && (len(open) < most || longest >= 0)
				if got := server.Admit(table, p); got != want {
					t.Fatalf("admitted %v with %d of %d open, %d of the client, longest waiting %d", got, len(open), most,
						has(p.from), longest)
				}
				if want && len(open) == most {
					if !open[longest].closed {
						t.Fatal("the one that has waited longest was not closed")
					}
					server.SetState(table, open[longest], http.StateClosed) // net/http says so afterwards
					open = slices.Delete(open, longest, longest+1)
				}
				if want {
					open = append(open, p)
				}
			} else {
				i := rapid.IntRange(0, len(open)-1).Draw(t, "which")
				p := open[i]
				switch rapid.SampledFrom([]http.ConnState{http.StateActive, http.StateIdle, http.StateClosed}).Draw(t, "state") {
				case http.StateActive:
					p.active = true
					server.SetState(table, p, http.StateActive)
				case http.StateIdle:
					server.SetState(table, p, http.StateIdle)
					if p.active { // one that waits already goes on waiting
						p.active = false
						toEnd(i)
					}
				default:
					server.SetState(table, p, http.StateClosed)
					open = slices.Delete(open, i, i+1)
				}
			}
			if slices.ContainsFunc(open, func(p *peer) bool { return p.closed }) {
				t.Fatal("one was closed that should not have been")
			}
			if got := server.Figures(table)[0]; got != int64(len(open)) || len(open) > most {
				t.Fatalf("%d open, want %d of %d", got, len(open), most)
			}
		}
	})
}
