package egress_test

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// nameServer is a DNS server on loopback that answers as a test wants, with no
// time to live. Names end in a dot.
type nameServer struct {
	conn net.PacketConn

	mu sync.Mutex // guards the fields below
	// :: name → its addresses for the nth question, from 1, after CNAMEs if any, which end in a dot
	answers map[string]func(nth int) []string
	others  []string                           // the addresses of every other name; none: there is no such name
	asked   map[string]map[dnsmessage.Type]int // :: name → type → questions
}

func newNameServer(t *testing.T) *nameServer {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &nameServer{conn: conn, answers: make(map[string]func(int) []string),
		asked: make(map[string]map[dnsmessage.Type]int)}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		s.serve()
	}()
	t.Cleanup(func() {
		conn.Close()
		<-stopped
	})
	return s
}

// has makes a name answer with the same addresses always.
func (s *nameServer) has(name string, addresses ...string) {
	s.answersWith(name, func(int) []string { return addresses })
}

func (s *nameServer) answersWith(name string, answer func(nth int) []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers[name] = answer
}

// resolver asks this server and nobody else.
func (s *nameServer) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", s.conn.LocalAddr().String())
	}}
}

// questions counts what was asked so far.
func (s *nameServer) questions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	total := 0
	for _, types := range s.asked {
		for _, n := range types {
			total += n
		}
	}
	return total
}

func (s *nameServer) serve() {
	buffer := make([]byte, 1500)
	for {
		n, from, err := s.conn.ReadFrom(buffer)
		if err != nil {
			return
		}
		var question dnsmessage.Message
		if question.Unpack(buffer[:n]) != nil || len(question.Questions) != 1 {
			continue
		}
		answer := s.answer(question)
		if packed, err := answer.Pack(); err == nil {
			_, _ = s.conn.WriteTo(packed, from)
		}
	}
}

func (s *nameServer) answer(m dnsmessage.Message) dnsmessage.Message {
	q := m.Questions[0]
	m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
	s.mu.Lock()
	defer s.mu.Unlock()
	name := q.Name
	for {
		if s.asked[name.String()] == nil {
			s.asked[name.String()] = make(map[dnsmessage.Type]int)
		}
		s.asked[name.String()][q.Type]++
		answer, known := s.answers[name.String()]
		if !known && s.others == nil {
			m.RCode = dnsmessage.RCodeNameError
			return m
		}
		if !known {
			answer = func(int) []string { return s.others }
		}
		followed := true // the last CNAME has its addresses here
		for _, text := range answer(s.asked[name.String()][q.Type]) {
			header := dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET}
			addr, err := netip.ParseAddr(text)
			switch {
			case err != nil:
				header.Type = dnsmessage.TypeCNAME
				name = dnsmessage.MustNewName(text)
				m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.CNAMEResource{CNAME: name}})
				followed = false
				continue
			case addr.Is4() && q.Type == dnsmessage.TypeA:
				header.Type = q.Type
				m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AResource{A: addr.As4()}})
			case addr.Is6() && q.Type == dnsmessage.TypeAAAA:
				header.Type = q.Type
				m.Answers = append(m.Answers, dnsmessage.Resource{Header: header,
					Body: &dnsmessage.AAAAResource{AAAA: addr.As16()}})
			}
			followed = true
		}
		if followed {
			return m
		}
	}
}

// forget has the next question about a name be the first one.
func (s *nameServer) forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.asked, name)
}
