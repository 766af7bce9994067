package limit_test

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"tandem/internal/limit"
)

const plenty = 1_000 // places in a table that is never full

var epoch = time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)

func quota(calls int, window time.Duration) limit.Quota {
	return limit.Quota{Calls: calls, Window: window}
}

// address makes the nth of many clients.
func address(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 0x0a000000+n)))
}

func TestRateSlides(t *testing.T) {
	t.Parallel()
	r := limit.NewRate[netip.Addr](quota(3, 60*time.Second), plenty)
	for _, step := range []struct {
		at   time.Duration
		want limit.Verdict
	}{
		{0, limit.Verdict{OK: true, Remaining: 2, Reset: 60 * time.Second}},
		{10 * time.Second, limit.Verdict{OK: true, Remaining: 1, Reset: 50 * time.Second}},
		{10 * time.Second, limit.Verdict{OK: true, Remaining: 0, Reset: 50 * time.Second}},
		{10 * time.Second, limit.Verdict{OK: false, Remaining: 0, Reset: 50 * time.Second, Wait: 50 * time.Second}},
		{60*time.Second - 1, limit.Verdict{OK: false, Remaining: 0, Reset: 1, Wait: 1}},
		// the first has left, refusals used nothing
		{60 * time.Second, limit.Verdict{OK: true, Remaining: 0, Reset: 10 * time.Second}},
		{65 * time.Second, limit.Verdict{OK: false, Remaining: 0, Reset: 5 * time.Second, Wait: 5 * time.Second}},
		// read before, arrived after
		{64 * time.Second, limit.Verdict{OK: false, Remaining: 0, Reset: 5 * time.Second, Wait: 5 * time.Second}},
		{70 * time.Second, limit.Verdict{OK: true, Remaining: 1, Reset: 50 * time.Second}},
		{500 * time.Second, limit.Verdict{OK: true, Remaining: 2, Reset: 60 * time.Second}},
	} {
		if diff := cmp.Diff(step.want, r.Take(address(1), epoch.Add(step.at))); diff != "" {
			t.Errorf("at %v (-want +got):\n%s", step.at, diff)
		}
	}
	want := limit.RateStats{Quota: quota(3, 60*time.Second), Clients: 1, Capacity: plenty, Allowed: 6, Limited: 4}
	if diff := cmp.Diff(want, r.Stats(epoch.Add(500*time.Second))); diff != "" {
		t.Errorf("stats (-want +got):\n%s", diff)
	}
	want.Clients = 0
	if diff := cmp.Diff(want, r.Stats(epoch.Add(560*time.Second))); diff != "" {
		t.Errorf("stats when nothing counts any more (-want +got):\n%s", diff)
	}
}

// These times come without a monotonic reading. With one, as time.Now has it, a clock
// that is set is not seen at all.
func TestRateWhenTheClockIsSetBack(t *testing.T) {
	t.Parallel()
	r := limit.NewRate[netip.Addr](quota(1, 60*time.Second), plenty)
	r.Take(address(1), epoch)
	for _, at := range []time.Duration{-time.Hour, 0, 59 * time.Second} {
		if v := r.Take(address(1), epoch.Add(at)); v.OK {
			t.Errorf("at %v one more passed", at)
		}
	}
	if v := r.Take(address(1), epoch.Add(60*time.Second)); !v.OK {
		t.Error("the allowance does not come back")
	}
}

func TestRateClients(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		a, b string
		same bool
	}{
		{"192.0.2.1", "192.0.2.1", true},
		{"192.0.2.1", "192.0.2.2", false},
		{"192.0.2.1", "::ffff:192.0.2.1", true},
		{"192.0.2.1", "::192.0.2.1", false},
		{"2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", true},
		{"2001:db8::1", "2001:db8:0:1::1", false},
		{"2001:db8:0:1::", "2001:db8:0:1:8000::", true},
		{"fe80::1%eth0", "fe80::2%eth1", true},
	} {
		r := limit.NewRate[netip.Addr](quota(1, time.Second), plenty)
		r.Take(limit.Network(netip.MustParseAddr(tt.a)), epoch)
		if v := r.Take(limit.Network(netip.MustParseAddr(tt.b)), epoch); v.OK == tt.same {
			t.Errorf("%s and %s: passes %v", tt.a, tt.b, v.OK)
		}
	}
	r := limit.NewRate[netip.Addr](quota(1, time.Second), plenty)
	r.Take(limit.Network(netip.Addr{}), epoch) // a peer without an address
	if v := r.Take(limit.Network(netip.Addr{}), epoch); v.OK {
		t.Error("peers without an address are not one client")
	}
}

// Several calls pass together or not at all, and who is refused learns when they would.
func TestRateTakesAllOrNone(t *testing.T) {
	t.Parallel()
	for _, calls := range []int{10, 100} { // one by one, and in cells of 64ths
		r := limit.NewRate[netip.Addr](quota(calls, 64*time.Second), plenty)
		whole := 64 * time.Second
		for i, step := range []struct {
			at   time.Duration
			n    int // tenths of the quota
			want limit.Verdict
		}{
			{0, 0, limit.Verdict{OK: true, Remaining: 10, Reset: whole}},
			{0, 2, limit.Verdict{OK: true, Remaining: 8, Reset: whole}},
			{10 * time.Second, 5, limit.Verdict{OK: true, Remaining: 3, Reset: 54 * time.Second}},
			// two more are needed
			{20 * time.Second, 4, limit.Verdict{OK: false, Remaining: 3, Reset: 44 * time.Second, Wait: 44 * time.Second}},
			{20 * time.Second, 6, limit.Verdict{OK: false, Remaining: 3, Reset: 44 * time.Second, Wait: 54 * time.Second}},
			{20 * time.Second, 11, limit.Verdict{OK: false, Remaining: 3, Reset: 44 * time.Second}}, // never
			{20 * time.Second, 3, limit.Verdict{OK: true, Remaining: 0, Reset: 44 * time.Second}},
			{20 * time.Second, 0, limit.Verdict{OK: false, Remaining: 0, Reset: 44 * time.Second, Wait: 44 * time.Second}},
			{64 * time.Second, 0, limit.Verdict{OK: true, Remaining: 2, Reset: 10 * time.Second}},
			{64 * time.Second, 2, limit.Verdict{OK: true, Remaining: 0, Reset: 10 * time.Second}},
			{74 * time.Second, 6, limit.Verdict{OK: false, Remaining: 5, Reset: 10 * time.Second, Wait: 10 * time.Second}},
			{74 * time.Second, 5, limit.Verdict{OK: true, Remaining: 0, Reset: 10 * time.Second}},
		} {
			step.want.Remaining *= calls / 10
			if diff := cmp.Diff(step.want, r.TakeAll(address(1), epoch.Add(step.at), step.n*calls/10)); diff != "" {
				t.Errorf("quota %d, step %d (-want +got):\n%s", calls, i, diff)
			}
		}
	}
}

// To ask costs nothing and leaves no trace.
func TestRateAsked(t *testing.T) {
	t.Parallel()
	r := limit.NewRate[netip.Addr](quota(1, time.Second), 1)
	for i := range uint32(10) {
		if v := r.TakeAll(address(i), epoch, 0); !v.OK || v.Remaining != 1 {
			t.Errorf("client %d: %+v", i, v)
		}
	}
	if got := r.Stats(epoch); got.Clients != 0 || got.Allowed != 0 || got.Limited != 0 {
		t.Errorf("%+v", got)
	}
}

// arrival is one call of a random sequence, or several at once.
type arrival struct {
	client uint32
	at     time.Duration
	n      int
}

// arrivals draws calls in stretches of one pace each: bursts, the pace of the
// quota and a little off it, whole windows. Now and then time goes back a little.
func arrivals(t *rapid.T, q limit.Quota, clients int) []arrival {
	step := q.Window / time.Duration(q.Calls)
	pace := rapid.OneOf(
		rapid.SampledFrom([]time.Duration{0, 1, step / 2, step - 1, step, step + 1, q.Window - 1, q.Window, q.Window + 1,
			-step}),
		rapid.Map(rapid.Int64Range(0, int64(2*step)), func(n int64) time.Duration { return time.Duration(n) }))
	at := time.Duration(0)
	var calls []arrival
	for range rapid.IntRange(1, 20).Draw(t, "stretches") {
		gap, first := pace.Draw(t, "gap"), rapid.IntRange(0, clients-1).Draw(t, "client")
		together := rapid.IntRange(1, clients).Draw(t, "clients")
		n := rapid.SampledFrom([]int{1, 1, 1, 0, 2, 10}).Draw(t, "at once")
		for i := range rapid.IntRange(1, 2*q.Calls).Draw(t, "calls") {
			calls = append(calls, arrival{uint32((first + i%together) % clients), at, n})
			at += gap
		}
	}
	return calls
}

// counted is how many of the moments lie in the window that ends with the last of
// them at a moment: windows are half open.
func counted(moments []time.Duration, at, window time.Duration) (n int, oldest time.Duration) {
	for i := len(moments) - 1; i >= 0 && moments[i] > at-window; i-- {
		n, oldest = n+1, moments[i]
	}
	return n, oldest
}

// Whatever comes, no window of a client ever holds more than the quota, also when the
// table is full and clients share; what is remembered stays within its bound.
func TestRateNeverLetsTooManyPass(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		q := quota(rapid.SampledFrom([]int{1, 2, 5, 50, 64, 65, 200}).Draw(t, "calls"), time.Second)
		capacity := rapid.IntRange(1, 40).Draw(t, "capacity")
		r := limit.NewRate[netip.Addr](q, capacity)
		passed := map[uint32][]time.Duration{}
		calls := arrivals(t, q, rapid.IntRange(1, 60).Draw(t, "clients"))
		now := calls[0].at
		for _, a := range calls {
			now = max(now, a.at)
			v := r.TakeAll(address(a.client), epoch.Add(a.at), a.n)
			if v.OK {
				passed[a.client] = append(passed[a.client], slices.Repeat([]time.Duration{now}, a.n)...)
			}
			if n, _ := counted(passed[a.client], now, q.Window); n > q.Calls {
				t.Fatalf("%d passed in the window up to %v", n, now)
			} else if v.Remaining < 0 || v.Remaining > q.Calls-n || v.Reset <= 0 || v.Reset > q.Window {
				t.Fatalf("%d passed in the window up to %v: %+v", n, now, v)
			}
		}
		if runs, places := r.Runs(); r.Stats(epoch).Clients > capacity || places > capacity+max(capacity/16, 1) ||
			runs > places*65 {
			t.Fatalf("%d runs in %d places of %d", runs, places, capacity)
		}
	})
}

// Up to 64 calls the verdict is exactly that of a log of every call.
func TestRateIsExact(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		q := quota(rapid.SampledFrom([]int{1, 2, 5, 50, 64}).Draw(t, "calls"), time.Second)
		r := limit.NewRate[netip.Addr](q, plenty)
		passed := map[uint32][]time.Duration{}
		calls := arrivals(t, q, 3)
		now := calls[0].at
		for _, a := range calls {
			now = max(now, a.at)
			n, _ := counted(passed[a.client], now, q.Window)
			want := limit.Verdict{OK: n+max(a.n, 1) <= q.Calls}
			if want.OK {
				passed[a.client] = append(passed[a.client], slices.Repeat([]time.Duration{now}, a.n)...)
			}
			n, oldest := counted(passed[a.client], now, q.Window)
			want.Remaining, want.Reset = q.Calls-n, q.Window
			if n > 0 {
				want.Reset = oldest + q.Window - now
			}
			if last := n + max(a.n, 1) - q.Calls; !want.OK && last <= n { // the last that has to go
				all := passed[a.client]
				want.Wait = all[len(all)-n+last-1] + q.Window - now
			}
			if diff := cmp.Diff(want, r.TakeAll(address(a.client), epoch.Add(a.at), a.n)); diff != "" {
				t.Fatalf("at %v (-want +got):\n%s", now, diff)
			}
		}
	})
}

// A call is refused only when as many as the quota allows have passed in a window
// that is a 64th longer: nobody is starved, whatever the quota.
func TestRateRefusesOnlyAtTheQuota(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		q := quota(rapid.SampledFrom([]int{65, 100, 200}).Draw(t, "calls"), time.Second)
		r := limit.NewRate[netip.Addr](q, plenty)
		passed := map[uint32][]time.Duration{}
		calls := arrivals(t, q, 2)
		now := calls[0].at
		for _, a := range calls {
			now = max(now, a.at)
			if r.Take(address(a.client), epoch.Add(a.at)).OK { // one by one
				passed[a.client] = append(passed[a.client], now)
			} else if n, _ := counted(passed[a.client], now, q.Window+q.Window/64); n < q.Calls {
				t.Fatalf("refused at %v with %d of %d", now, n, q.Calls)
			}
		}
	})
}

// A client that calls at the pace of the quota is never refused, even when it has
// just used it up and asks again as soon as Reset says.
func TestRateSteadyClient(t *testing.T) {
	t.Parallel()
	for _, calls := range []int{1, 7, 50, 64} {
		q := quota(calls, 60*time.Second)
		r := limit.NewRate[netip.Addr](q, plenty)
		now := epoch
		for range calls {
			r.Take(address(1), now) // a burst, all at once
		}
		now = now.Add(r.Take(address(1), now).Reset)
		step := (q.Window + time.Duration(calls) - 1) / time.Duration(calls)
		for i := range 10 * calls {
			if v := r.Take(address(1), now); !v.OK {
				t.Fatalf("%v: call %d is refused for %v", q, i, v.Reset)
			}
			now = now.Add(step)
		}
	}
}

// A million clients neither grow the table nor make it forget what others have
// used: the one that is at its quota stays there, and the one that has a place keeps it.
func TestRateUnderAFlood(t *testing.T) {
	t.Parallel()
	const capacity = 4_096
	q := quota(50, 60*time.Second)
	r := limit.NewRate[netip.Addr](q, capacity)
	greedy, steady := address(1), address(2)
	for range q.Calls {
		r.Take(greedy, epoch)
	}
	flood, second := uint32(1_000_000), time.Duration(0)
	for n := range flood {
		if n%(flood/50) == 0 { // 20,000 others in between
			second += time.Second
			if v := r.Take(steady, epoch.Add(second)); !v.OK {
				t.Fatalf("%v into the flood the steady client is refused", second)
			}
			if v := r.Take(greedy, epoch.Add(second)); v.OK {
				t.Fatalf("%v into the flood the quota is forgotten", second)
			}
		}
		r.Take(address(3+n), epoch.Add(second))
	}
	now := epoch.Add(second)
	if s := r.Stats(now); s.Clients != capacity {
		t.Errorf("%d clients in a table of %d", s.Clients, capacity)
	}
	if runs, places := r.Runs(); places != capacity+capacity/16 || runs > places*65 {
		t.Errorf("%d runs in %d places", runs, places)
	}
	// A window later nothing of it is left.
	now = now.Add(q.Window)
	for n := range uint32(capacity) {
		if v := r.Take(address(5_000_000+n), now); !v.OK || v.Remaining != q.Calls-1 {
			t.Fatalf("after the flood: %+v", v)
		}
	}
}

// Who had to share and then finds a place is not given a new allowance with it.
func TestRateRemembersWhatWasShared(t *testing.T) {
	t.Parallel()
	q := quota(3, 60*time.Second)
	r := limit.NewRate[netip.Addr](q, 1)
	r.Take(address(1), epoch) // takes the only place
	late := epoch.Add(30 * time.Second)
	for range q.Calls {
		if !r.Take(address(2), late).OK {
			t.Fatal("a newcomer is refused although nobody shares with it")
		}
	}
	free := epoch.Add(60 * time.Second) // the place is free again
	if v := r.Take(address(2), free); v.OK {
		t.Errorf("a fourth call passed: %+v", v)
	}
	if v := r.Take(address(2), late.Add(60*time.Second)); !v.OK || v.Remaining != 2 {
		t.Errorf("a window later: %+v", v)
	}
}

// Who goes on calling does not keep those in the table who have stopped.
func TestRateForgets(t *testing.T) {
	t.Parallel()
	r := limit.NewRate[netip.Addr](quota(50, 60*time.Second), plenty)
	for n := range uint32(100) {
		r.Take(address(n), epoch)
	}
	later := epoch.Add(30 * time.Second)
	r.Take(address(0), later)
	if s := r.Stats(epoch.Add(60*time.Second - 1)); s.Clients != 100 {
		t.Errorf("%d clients are known before the window is over", s.Clients)
	}
	if s := r.Stats(epoch.Add(60 * time.Second)); s.Clients != 1 {
		t.Errorf("%d clients are known, want the one that called again", s.Clients)
	}
}

// However many ask at once, the quota passes.
func TestRateTogether(t *testing.T) {
	t.Parallel()
	r := limit.NewRate[netip.Addr](quota(50, time.Hour), plenty)
	var passed atomic.Int64
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 100 {
				if r.Take(address(1), time.Now()).OK {
					passed.Add(1)
				}
				r.Stats(time.Now())
			}
		})
	}
	all.Wait()
	if n := passed.Load(); n != 50 {
		t.Errorf("%d passed", n)
	}
	if s := r.Stats(time.Now()); s.Allowed != 50 || s.Limited != 750 {
		t.Errorf("%+v", s)
	}
}

func TestParseQuota(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]limit.Quota{
		"50/60s": quota(50, time.Minute), "50/1m": quota(50, time.Minute), "1/1s": quota(1, time.Second),
		"1000000/24h": quota(1_000_000, 24*time.Hour), "off": {}, "0": {},
	} {
		got, err := limit.ParseQuota(text)
		if err != nil || got != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
		if again, err := limit.ParseQuota(got.String()); err != nil || again != got {
			t.Errorf("%q is written as %q: %v", text, got, err)
		}
	}
	for _, text := range []string{"", "50", "50/", "/60s", "50/60", "50 / 60s", "fifty/60s", "0/0s", "0/60s", "-1/60s",
		"1000001/60s", "50/0s", "50/999ms", "50/1500ms", "50/-60s", "50/25h", "OFF"} {
		if got, err := limit.ParseQuota(text); err == nil {
			t.Errorf("%q is taken for %v", text, got)
		}
	}
}
