package load_test

import (
	"strings"
	"testing"

	"tandem/internal/load"
)

// TestShow: three digits that count, and the unit that keeps them short; the neighbours of each step.
func TestShow(t *testing.T) {
	t.Parallel()
	tests := []struct {
		unit  string
		value float64
		want  string
	}{
		{load.UnitMilliseconds, 0, "0 ms"},
		{load.UnitMilliseconds, 0.001, "1.00 µs"},
		{load.UnitMilliseconds, 0.0994, "99.4 µs"},
		{load.UnitMilliseconds, 0.0995, "0.10 ms"},
		{load.UnitMilliseconds, 0.994, "0.99 ms"},
		{load.UnitMilliseconds, 0.9951, "1.00 ms"},
		{load.UnitMilliseconds, 9.99, "9.99 ms"},
		{load.UnitMilliseconds, 9.996, "10.0 ms"},
		{load.UnitMilliseconds, 99.94, "99.9 ms"},
		{load.UnitMilliseconds, 99.96, "100 ms"},
		{load.UnitMilliseconds, 999.4, "999 ms"},
		{load.UnitMilliseconds, 999.5, "1.00 s"},
		{load.UnitMilliseconds, 99_900, "99.9 s"},
		{load.UnitMilliseconds, 99_960, "1.67 min"},
		{load.UnitMilliseconds, -1.5, "-1.50 ms"},
		{load.UnitPerSecond, 999.6, "1,000/s"},
		{load.UnitPerSecond, 0.0123, "0.012/s"},
		{load.UnitPerSecond, 1234567, "1,234,567/s"},
		{load.UnitPercent, 0, "0 %"},
		{load.UnitPercent, 0.04, "< 0.1 %"},
		{load.UnitPercent, 0.1, "0.1 %"},
		{load.UnitPercent, 50, "50 %"},
		{load.UnitPercent, 99.9, "99.9 %"},
		{load.UnitPercent, 99.99, "> 99.9 %"}, // one lost request of ten thousand is not none
		{load.UnitPercent, 100, "100 %"},
		{load.UnitCount, 999, "999"},
		{load.UnitCount, 1000, "1,000"},
		{load.UnitCount, -123456, "-123,456"},
		{load.UnitMegabytes, 61.24, "61.2 MB"},
		{load.UnitCores, 0.456, "0.46"},
	}
	for _, test := range tests {
		if got := load.Show(load.Metric{Unit: test.unit, Value: test.value}); got != test.want {
			t.Errorf("%v %s: %q, want %q", test.value, test.unit, got, test.want)
		}
	}
}

// TestDescribeRun: how hard the service was asked, in every form there is.
func TestDescribeRun(t *testing.T) {
	t.Parallel()
	for want, settings := range map[string]load.Settings{
		"500 requests, 20 at a time (closed loop": {Requests: 500, Concurrency: 20},
		"1.67 min, 20 at a time (closed loop":     {DurationSeconds: 100, Concurrency: 20},
		"500 requests or 10.0 s, 1 at a time":     {Requests: 500, DurationSeconds: 10, Concurrency: 1},
		"10.0 s, 200 a second (open loop, at most 64 at once)": {DurationSeconds: 10, RatePerSecond: 200,
			Concurrency: 64},
		"10.0 s, from 10.0 to 200 a second (open loop, at most 64 at o": {DurationSeconds: 10, RatePerSecond: 200,
			RampFromPerSecond: 10, Concurrency: 64},
	} {
		if got := load.DescribeRun(&load.Report{Settings: settings}); !strings.Contains(got, "Each phase: "+want) {
			t.Errorf("%q, want it to say %q", got, want)
		}
	}
}
