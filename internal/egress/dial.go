package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"
)

// Dialer makes TCP connections to allowed addresses, and to nothing else. It judges the host before any look-up, as
// [Client.Check] does, and then each resolved address in the moment of its connect: DNS rebinding gains nothing.
type Dialer struct {
	policy   *Policy
	timeout  time.Duration // name look-up and connect together
	resolver *net.Resolver
}

// NewDialer makes a dialer. Timeout bounds the look-up and the connect together; zero means 3 s. A nil resolver means
// the pure-Go one with the system's settings: unlike the C library, it does not read 0x7f.1 as an address.
func NewDialer(policy Policy, timeout time.Duration, resolver *net.Resolver) (*Dialer, error) {
	compiled, err := policy.compile()
	if err != nil {
		return nil, err
	}
	if timeout == 0 {
		timeout = 3 * time.Second
	}
	if resolver == nil {
		resolver = &net.Resolver{PreferGo: true}
	}
	return &Dialer{policy: compiled, timeout: timeout, resolver: resolver}, nil
}

// errUnreachable stands for the failures of a host's allowed addresses, where policy refused others.
var errUnreachable = errors.New("no allowed address could be reached")

// DialContext connects to host:port over TCP. The error is or wraps a *[Refused] if and only if policy refuses the
// host, the port or every address of the host.
func (d *Dialer) DialContext(ctx context.Context, network, hostPort string) (net.Conn, error) {
	host, address, err := d.judge(hostPort)
	if err != nil {
		return nil, err
	}
	// The addresses of a host are dialled one after the other, both families at the same time.
	var refused atomic.Pointer[Refused]
	var tried atomic.Bool
	optedIn := d.policy.hostOptedIn(host)
	dialer := net.Dialer{
		Timeout:  d.timeout,
		Resolver: d.resolver,
		ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
			if err := d.judgeConcrete(address, optedIn); err != nil {
				refused.Store(err)
				return err
			}
			tried.Store(true)
			return nil
		},
	}
	conn, err := dialer.DialContext(ctx, network, address)
	if err == nil {
		return conn, nil
	}
	// net.Dialer returns the first error. A refusal is final, so it must not hide an allowed address: a later attempt may
	// reach it.
	switch {
	case refused.Load() == nil || localFault(err) != "":
		return nil, fmt.Errorf("dial %s: %w", hostPort, err)
	case tried.Load():
		return nil, fmt.Errorf("dial %s: %w", hostPort, errUnreachable)
	default:
		return nil, refused.Load()
	}
}

// judge reads and judges host:port before any look-up. It returns the canonical host, and the address to dial.
func (d *Dialer) judge(hostPort string) (host, address string, err error) {
	refuse := func(v Verdict) error { return &Refused{Target: hostPort, Verdict: v} }
	written, service, err := net.SplitHostPort(hostPort)
	if err != nil {
		return "", "", refuse(Verdict{ReasonInvalid, "not host:port"})
	}
	number, err := parsePort(service)
	if err != nil {
		return "", "", refuse(Verdict{ReasonInvalid, "not a port number"})
	}
	host, addr, err := canonicalHost(written)
	if err != nil {
		return "", "", refuse(Verdict{ReasonInvalid, err.Error()})
	}
	if verdict := d.policy.judgeHost(host, addr, number); !verdict.Allows() {
		return "", "", refuse(verdict)
	}
	name := host
	if !addr.IsValid() {
		// Without a final dot the resolver could append a search domain of resolv.conf, and call another host.
		name += "."
	}
	return host, net.JoinHostPort(name, service), nil
}

// judgeConcrete judges the address just before the kernel connects to it.
func (d *Dialer) judgeConcrete(address string, hostOptedIn bool) *Refused {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return &Refused{Target: address, Verdict: Verdict{ReasonInvalid, "not an address"}}
	}
	if verdict := d.policy.judge(at, hostOptedIn); !verdict.Allows() {
		return &Refused{Target: address, Verdict: verdict}
	}
	return nil
}
