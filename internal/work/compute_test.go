package work_test

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tandem/internal/work"
)

func TestDefaultCompute(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		cores    int
		givesWay bool
		want     int
	}{{1, true, 1}, {1, false, 1}, {2, true, 2}, {2, false, 1}, {8, true, 8}, {8, false, 7}} {
		if got := work.DefaultCompute(tt.cores, tt.givesWay); got != tt.want {
			t.Errorf("%d cores, gives way %v: %d computations at a time, want %d", tt.cores, tt.givesWay, got, tt.want)
		}
	}
}

// The golden results. They must never change: callers compare them across
// architectures and releases. A program in C, written from the comments of
// builtin_compute.go, gives the same.
func TestComputeGolden(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		data       string
		complexity int
		want       string
	}{
		{`{"a":1}`, 1, `{"sum":1.509771,"product":0.899252,"operations":3,"checksum":"a0353da1057125eb8d5302ccd7b2aef9b2ecffc360250c265246c28b92478778"}`},
		{`{"a":1}`, 2, `{"sum":3.175316,"product":0.953661,"operations":6,"checksum":"904f170041fcb95791bf59a36aef0a7cfaf21b8d2a62fe27d8a061f720a78338"}`},
		{`{"a":1,"b":[true,null,"ä"]}`, 1, `{"sum":1.398647,"product":0.766654,"operations":3,"checksum":"dcf8cc3c78748b9cbb2021dfedc1a1c33183dabecf43d8b74c3b12a415cc2bbf"}`},
		{"{ \"b\" : [true, null, \"\\u00e4\"],\n\t\"a\": 1.0e0 }", 1,
			`{"sum":1.398647,"product":0.766654,"operations":3,"checksum":"dcf8cc3c78748b9cbb2021dfedc1a1c33183dabecf43d8b74c3b12a415cc2bbf"}`},
		{`{"a":2}`, 10, `{"sum":17.509468,"product":3.350969,"operations":30,"checksum":"dfe229b174bc2a498bf264bde16574604f8ef9b2c23164eafb160b7f2c7a9449"}`},
	} {
		t.Run(tt.data, func(t *testing.T) {
			t.Parallel()
			got, err := work.RunCompute(t.Context(), json.RawMessage(tt.data), tt.complexity)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != tt.want {
				t.Errorf("compute(%s, %d)\n got %s\nwant %s", tt.data, tt.complexity, got, tt.want)
			}
		})
	}
}

func TestComputeStops(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(context.DeadlineExceeded)
	got, err := work.RunCompute(ctx, json.RawMessage(`{"a":1}`), 10)
	if err != context.DeadlineExceeded || got != nil { //nolint:errorlint // the cause itself
		t.Errorf("%s, %v; want the cause and no result", got, err)
	}
}

func TestComputeRefusesWhatIsNotJSON(t *testing.T) {
	t.Parallel()
	for _, data := range []string{``, `{`, `{"a":1,"a":2}`, "{\"a\":\"\xff\"}"} {
		if got, err := work.RunCompute(t.Context(), json.RawMessage(data), 1); err == nil {
			t.Errorf("%q: %s, want an error", data, got)
		}
	}
}

// The examples of RFC 8785: sections 3.2.2 and 3.2.3, and appendix B.
func TestCanonical(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, data, want string }{
		{
			"3.2.2",
			`{
			  "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
			  "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
			  "literals": [null, true, false]
			}`,
			`{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"string":"€$\u000f\nA'B\"\\\\\"/"}`,
		},
		{
			"3.2.3",
			`{
			  "\u20ac": "Euro Sign", "\r": "Carriage Return", "\ufb33": "Hebrew Letter Dalet With Dagesh", "1": "One",
			  "\ud83d\ude00": "Emoji: Grinning Face", "\u0080": "Control", "\u00f6": "Latin Small Letter O With Diaeresis"
			}`,
			`{"\r":"Carriage Return","1":"One","` + "\u0080" + `":"Control","ö":"Latin Small Letter O With Diaeresis",` +
				`"€":"Euro Sign","😀":"Emoji: Grinning Face","` + "\ufb33" + `":"Hebrew Letter Dalet With Dagesh"}`,
		},
		{"zero", `[0,-0,0.0]`, `[0,0,0]`},
		{"smallest", `5e-324`, `5e-324`},
		{"smallest negative", `-5e-324`, `-5e-324`},
		{"largest", `1.7976931348623157e308`, `1.7976931348623157e+308`},
		{"largest negative", `-1.7976931348623157e308`, `-1.7976931348623157e+308`},
		{"largest integer", `9007199254740992`, `9007199254740992`},
		{"smallest integer", `-9007199254740992`, `-9007199254740992`},
		{"2**68", `295147905179352830000`, `295147905179352830000`},
		{"just below 1e21", `9.999999999999997e22`, `9.999999999999997e+22`},
		{"1e23", `1e23`, `1e+23`},
		{"1e21", `1e21`, `1e+21`},
		{"below 1e21", `999999999999999900000`, `999999999999999900000`},
		{"round to even", `1424953923781206.25`, `1424953923781206.2`},
		{"small, in full", `0.000001`, `0.000001`},
		{"small, with exponent", `0.0000001`, `1e-7`},
		{"thirds", `333333333.33333325`, `333333333.33333325`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			data := json.RawMessage(tt.data)
			got, err := work.Canonical(data)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, string(got)); diff != "" {
				t.Errorf("canonical (-want +got):\n%s", diff)
			}
			if string(data) != tt.data {
				t.Errorf("the caller's data was changed to %s", data)
			}
		})
	}
}

// BenchmarkCompute reports the time of one operation of the task "compute":
// about 25 ms of one core.
func BenchmarkCompute(b *testing.B) {
	for b.Loop() {
		if _, err := work.RunCompute(b.Context(), json.RawMessage(`{"a":1}`), 1); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(b.Elapsed().Seconds()*1000/3/float64(b.N), "ms/operation")
}
