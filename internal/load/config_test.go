package load_test

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"tandem/internal/load"
)

func TestConfigValidate(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		change func(*load.Config)
		want   string // in the error; "": it is good
	}{
		{"as it is", func(*load.Config) {}, ""},
		{"no URL", func(c *load.Config) { c.URL = "" }, "url"},
		{"another scheme", func(c *load.Config) { c.URL = "ftp://host" }, "url"},
		{"no host", func(c *load.Config) { c.URL = "http://" }, "url"},
		{"a path", func(c *load.Config) { c.URL = "https://host/api/" }, ""},
		{"a query", func(c *load.Config) { c.URL = "http://host/?a=b" }, "url"},
		{"a password", func(c *load.Config) { c.URL = "http://me:secret@host" }, "API key"},
		{"a broken URL with a password", func(c *load.Config) { c.URL = "http://me:secret@ho st" }, "url"},
		{"an unknown phase", func(c *load.Config) { c.Phases = []string{"async", "warm-up"} }, "warm-up"},
		{"a phase twice", func(c *load.Config) { c.Phases = []string{"async", "async"} }, "twice"},
		{"no end", func(c *load.Config) { c.Requests = 0 }, "would not end"},
		{"a duration only", func(c *load.Config) { c.Requests, c.Duration = 0, time.Second }, ""},
		{"negative requests", func(c *load.Config) { c.Requests = -1 }, "requests"},
		{"nobody calls", func(c *load.Config) { c.Concurrency = 0 }, "concurrency"},
		{"one calls", func(c *load.Config) { c.Concurrency = 1 }, ""},
		{"10,000 call", func(c *load.Config) { c.Concurrency = 10_000 }, ""},
		{"10,001 call", func(c *load.Config) { c.Concurrency = 10_001 }, "concurrency"},
		{"a negative rate", func(c *load.Config) { c.Rate = -1 }, "rate"},
		{"no rate at all", func(c *load.Config) { c.Rate = math.NaN() }, "rate"},
		{"an endless rate", func(c *load.Config) { c.Rate = math.Inf(1) }, "rate"},
		{"a ramp", func(c *load.Config) { c.Rate, c.RampFrom = 10, 1 }, ""},
		{"a ramp to nowhere", func(c *load.Config) { c.RampFrom = 1 }, "ramp"},
		{"a rate that sends nothing", func(c *load.Config) { c.Rate, c.Duration = 0.001, time.Millisecond }, "sends nothing"},
		{"sync ratio 1", func(c *load.Config) { c.SyncRatio = 1 }, ""},
		{"sync ratio above 1", func(c *load.Config) { c.SyncRatio = 1.001 }, "sync ratio"},
		{"complexity 10", func(c *load.Config) { c.Complexity = 10 }, ""},
		{"complexity 11", func(c *load.Config) { c.Complexity = 11 }, "complexity"},
		{"a negative drain", func(c *load.Config) { c.Drain = -1 }, "drain"},
		{"a timeout too short", func(c *load.Config) { c.Timeout = time.Microsecond }, "timeout"},
		{"data", func(c *load.Config) { c.Data = json.RawMessage(`{"a":1}`) }, ""},
		{"empty data", func(c *load.Config) { c.Data = json.RawMessage(`{}`) }, "data"},
		{"data that is a list", func(c *load.Config) { c.Data = json.RawMessage(`[1]`) }, "data"},
		{"data that is no JSON", func(c *load.Config) { c.Data = json.RawMessage(`{`) }, "data"},
		{"respect", func(c *load.Config) { c.On429 = load.On429Respect }, ""},
		{"ignore", func(c *load.Config) { c.On429 = "ignore" }, "ignore"},
		{"poll", func(c *load.Config) { c.Callback.Poll = true }, ""},
		{"poll and listen", func(c *load.Config) { c.Callback.Poll, c.Callback.Listen = true, ":0" }, "polled"},
		{"poll and misbehave", func(c *load.Config) { c.Callback.Poll, c.Callback.Behaviour.FailRate = true, 1 }, "polled"},
		{"no port", func(c *load.Config) { c.Callback.Listen = "host" }, "receiver"},
		{"a public URL", func(c *load.Config) { c.Callback.PublicURL = "https://example.com/hooks" }, ""},
		{"a public URL with a query", func(c *load.Config) { c.Callback.PublicURL = "https://example.com/?a" },
			"callback url"},
		{"a public name", func(c *load.Config) { c.Callback.PublicURL = "example.com" }, "callback url"},
		{"an impossible receiver", func(c *load.Config) { c.Callback.Behaviour.FailRate = 2 }, "fail rate"},
		{"a threshold of a phase that does not run", func(c *load.Config) {
			c.Phases, c.Thresholds = []string{"sync"},
				[]load.Threshold{{Expression: "async.missing==0", Metric: "async.missing", Operator: "=="}}
		}, "async.missing"},
	} {
		cfg := load.Config{URL: "http://127.0.0.1:1", Requests: 10, Concurrency: 2}
		test.change(&cfg)
		err := cfg.Validate()
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%s: %v", test.name, err)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want) ||
			strings.Contains(err.Error(), "secret")):
			t.Errorf("%s: %v, want an error about %q without secrets", test.name, err, test.want)
		}
	}
}

func TestConfigDefaults(t *testing.T) {
	t.Parallel()
	cfg := load.Config{URL: "http://127.0.0.1:1", Requests: 10, Concurrency: 2}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	if len(cfg.Phases) != 3 || cfg.Complexity != 1 || cfg.Timeout != time.Minute || cfg.On429 != load.On429Count ||
		cfg.Tool == "" {
		t.Errorf("defaults: %+v", cfg)
	}
}
