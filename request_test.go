package tandem_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"tandem"
)

// TestStatusTransitions walks every pair of statuses; what is not listed here is forbidden.
func TestStatusTransitions(t *testing.T) {
	t.Parallel()
	allowed := map[[2]tandem.Status]bool{
		{tandem.StatusPending, tandem.StatusProcessing}:       true,
		{tandem.StatusProcessing, tandem.StatusPending}:       true,
		{tandem.StatusProcessing, tandem.StatusCompleted}:     true,
		{tandem.StatusProcessing, tandem.StatusFailed}:        true,
		{tandem.StatusCompleted, tandem.StatusCallbackSent}:   true,
		{tandem.StatusCompleted, tandem.StatusCallbackFailed}: true,
	}
	for _, from := range tandem.Statuses {
		for _, to := range tandem.Statuses {
			if got, want := from.CanBecome(to), allowed[[2]tandem.Status{from, to}]; got != want {
				t.Errorf("%s → %s: allowed %v, want %v", from, to, got, want)
			}
		}
	}
}

func TestStatusTerminal(t *testing.T) {
	t.Parallel()
	want := []tandem.Status{tandem.StatusCallbackSent, tandem.StatusCallbackFailed, tandem.StatusFailed}
	var got []tandem.Status
	for _, status := range tandem.Statuses {
		if !slices.ContainsFunc(tandem.Statuses, status.CanBecome) {
			got = append(got, status)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("statuses that nothing follows (-want +got):\n%s", diff)
	}
}

// TestStatusReachable checks that a request can get from pending to every other status.
func TestStatusReachable(t *testing.T) {
	t.Parallel()
	reached := []tandem.Status{tandem.StatusPending}
	for i := 0; i < len(reached); i++ {
		for _, next := range tandem.Statuses {
			if reached[i].CanBecome(next) && !slices.Contains(reached, next) {
				reached = append(reached, next)
			}
		}
	}
	for _, status := range tandem.Statuses {
		if !slices.Contains(reached, status) {
			t.Errorf("no way from pending to %s", status)
		}
	}
}

func TestStatusValid(t *testing.T) {
	t.Parallel()
	for _, status := range tandem.Statuses {
		if !status.Valid() {
			t.Errorf("%s is not valid", status)
		}
	}
	for _, status := range []tandem.Status{"", "Pending", "pending ", "done", "sent"} {
		if status.Valid() {
			t.Errorf("%q is valid", status)
		}
		if status.CanBecome(tandem.StatusProcessing) || tandem.StatusPending.CanBecome(status) {
			t.Errorf("%q has a place in the table of moves", status)
		}
	}
}

func TestRequestUnfinished(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		status   tandem.Status
		callback tandem.CallbackStatus
		want     bool
	}{
		{tandem.StatusPending, tandem.CallbackPending, true},
		{tandem.StatusProcessing, tandem.CallbackPending, true},
		{tandem.StatusProcessing, "", true}, // sync, running
		{tandem.StatusCompleted, "", false}, // sync, done
		{tandem.StatusCompleted, tandem.CallbackPending, true},
		{tandem.StatusCallbackSent, tandem.CallbackSent, false},
		{tandem.StatusCallbackFailed, tandem.CallbackFailed, false},
		{tandem.StatusFailed, "", false}, // sync, failed
		{tandem.StatusFailed, tandem.CallbackPending, true},
		{tandem.StatusFailed, tandem.CallbackSent, false},
		{tandem.StatusFailed, tandem.CallbackFailed, false},
	} {
		r := tandem.Request{Status: test.status, CallbackStatus: test.callback}
		if got := r.Unfinished(); got != test.want {
			t.Errorf("%s with callback %q: unfinished %v, want %v", test.status, test.callback, got, test.want)
		}
	}
}

// TestRequestJSON fixes the names that clients read, and that times not yet known are left out.
func TestRequestJSON(t *testing.T) {
	t.Parallel()
	got, err := json.Marshal(tandem.Request{
		ID:         "req_0",
		Mode:       tandem.ModeSync,
		Task:       "compute",
		Status:     tandem.StatusProcessing,
		Data:       json.RawMessage(`{"b":1,"a":2}`),
		Complexity: 2,
		CreatedAt:  time.Date(2026, 11, 21, 12, 0, 0, 5e6, time.UTC),
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `{"request_id":"req_0","mode":"sync","task":"compute","status":"processing","input_data":{"b":1,"a":2},` +
		`"complexity":2,"processing_time_ms":0,"callback_attempts":0,"created_at":"2026-11-21T12:00:00.005Z"}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// uuid7 lays out a UUID version 7 as RFC 9562 section 5.7 has it: 48 bits of milliseconds, then the rest.
func uuid7(ms int64, rest [10]byte) [16]byte {
	var id [16]byte
	for i := range 6 {
		id[i] = byte(ms >> (40 - 8*i))
	}
	copy(id[6:], rest[:])
	id[6] = 0x70 | id[6]&0x0f
	id[8] = 0x80 | id[8]&0x3f
	return id
}

const mostMillis = 1<<48 - 1

func drawID(t *rapid.T, ms int64) string {
	var rest [10]byte
	copy(rest[:], rapid.SliceOfN(rapid.Byte(), len(rest), len(rest)).Draw(t, "rest"))
	return tandem.ID(uuid7(ms, rest))
}

func TestID(t *testing.T) {
	t.Parallel()
	// The example of RFC 9562, appendix A.6.
	id := tandem.ID([16]byte{0x01, 0x7f, 0x22, 0xe2, 0x79, 0xb0, 0x7c, 0xc3, 0x98, 0xc4, 0xdc, 0x0c, 0x0c, 0x07, 0x39,
		0x8f})
	if want := "req_017f22e279b07cc398c4dc0c0c07398f"; id != want {
		t.Fatalf("id %s, want %s", id, want)
	}
	at, err := tandem.IDTime(id)
	if want := time.Date(2022, 2, 22, 19, 22, 22, 0, time.UTC); err != nil || !at.Equal(want) ||
		at.Location() != time.UTC {
		t.Errorf("time %v, %v; want %v", at, err, want)
	}
}

func TestIDTimeRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		ms := rapid.Int64Range(0, mostMillis).Draw(t, "ms")
		at, err := tandem.IDTime(drawID(t, ms))
		if err != nil || at.UnixMilli() != ms {
			t.Fatalf("time %v, %v; want %v", at, err, time.UnixMilli(ms).UTC())
		}
	})
}

func TestIDTimeRefuses(t *testing.T) {
	t.Parallel()
	const good = "req_017f22e279b07cc398c4dc0c0c07398f"
	if _, err := tandem.IDTime(good); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{
		"",
		"req_",
		strings.TrimPrefix(good, "req_"),
		good[:len(good)-1],
		good[:len(good)-2],
		good + "0",
		good + "00",
		" " + good,
		strings.ToUpper(good),
		"req_" + strings.ToUpper(good[4:]),
		"req_017f22e2-79b0-7cc3-98c4-dc0c0c07398f",
		"req_017f22e279b07cc398c4dc0c0c07398g",
		"req_017f22e279b06cc398c4dc0c0c07398f", // a UUID of version 6
		"msg_017f22e279b07cc398c4dc0c0c07398f",
		"req_req_017f22e279b07cc398c4dc0c0c07398f",
		strings.Repeat("req_", 1<<20),
	} {
		at, err := tandem.IDTime(id)
		if err == nil || !at.IsZero() {
			t.Errorf("id %.60q: time %v, no error", id, at)
			continue
		}
		if len(err.Error()) > 400 {
			t.Errorf("id of %d bytes: error of %d bytes", len(id), len(err.Error()))
		}
	}
}

// TestOrderOf states the promise: an id's order is at least OrderOf(t) exactly if it was made at t or later.
func TestOrderOf(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		const hour = int64(time.Hour / time.Millisecond) // at the edges bounds are clamped; see TestOrderOfClamps
		ms := rapid.Int64Range(hour, mostMillis-hour).Draw(t, "ms")
		// Near the id's own millisecond, where a mistake would be, or anywhere.
		offset := rapid.OneOf(
			rapid.Int64Range(-2e6, 2e6),
			rapid.Int64Range(-int64(time.Hour), int64(time.Hour)),
		).Draw(t, "offset")
		made := time.UnixMilli(ms)
		at := made.Add(time.Duration(offset))
		order, err := tandem.IDOrder(drawID(t, ms))
		if err != nil {
			t.Fatal(err)
		}
		if got, want := tandem.OrderOf(at) <= order, !made.Before(at); got != want {
			t.Fatalf("id of %v is at or after the bound of %v: %v, want %v", made, at, got, want)
		}
	})
}

func TestOrderOfClamps(t *testing.T) {
	t.Parallel()
	first, last := tandem.OrderOf(time.UnixMilli(0)), tandem.OrderOf(time.UnixMilli(mostMillis))
	if first != 0 || last != mostMillis<<12 {
		t.Errorf("bounds of the first and last millisecond: %d and %d", first, last)
	}
	for _, at := range []time.Time{{}, time.UnixMilli(-1), time.Unix(-1e10, 0)} {
		if got := tandem.OrderOf(at); got != first {
			t.Errorf("bound of %v %d, want %d", at, got, first)
		}
	}
	for _, at := range []time.Time{
		time.UnixMilli(mostMillis).Add(1), time.UnixMilli(mostMillis + 1), time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC),
	} {
		if got := tandem.OrderOf(at); got != last+1<<12 {
			t.Errorf("bound of %v %d, want %d: after every id", at, got, last+1<<12)
		}
	}
}

// TestIDOrderIsTheOrderOfIDs: ids that a process may make compare as their orders do.
func TestIDOrderIsTheOrderOfIDs(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		ms := rapid.Int64Range(0, mostMillis-1).Draw(t, "ms")
		a, b := drawID(t, ms), drawID(t, ms+rapid.Int64Range(0, 1).Draw(t, "later"))
		orderA, errA := tandem.IDOrder(a)
		orderB, errB := tandem.IDOrder(b)
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		if orderA != orderB && (orderA < orderB) != (a < b) {
			t.Fatalf("%s has order %d, %s has %d", a, orderA, b, orderB)
		}
	})
}

// TestIDOrder states that ids sort by the millisecond they were made in.
func TestIDOrder(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		early := rapid.Int64Range(0, mostMillis-1).Draw(t, "early")
		late := rapid.Int64Range(early+1, mostMillis).Draw(t, "late")
		if a, b := drawID(t, early), drawID(t, late); a >= b {
			t.Fatalf("%s of %d does not sort before %s of %d", a, early, b, late)
		}
	})
}
