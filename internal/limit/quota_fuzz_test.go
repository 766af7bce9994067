package limit_test

import (
	"testing"
	"time"

	"tandem/internal/limit"
)

// FuzzQuota reads values of --rate-limit: what is accepted is within its bounds,
// and is read again from its own text.
func FuzzQuota(f *testing.F) {
	for _, seed := range []string{
		"50/60s", "off", "0", "", "/", "50", "50/", "/60s", "0/60s", "-1/60s", "+5/1m", "1e3/60s", "50/1h", "50/999ms",
		"50/1500ms", "50/-60s", "50/1m0s", "50/60", "9999999999999999999/60s", "50/60s/60s", " 50/60s", "off ",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		quota, err := limit.ParseQuota(text)
		if err != nil {
			return
		}
		if quota.IsZero() {
			if text != "off" && text != "0" {
				t.Fatalf("%q is no limit", text)
			}
			return
		}
		if quota.Calls < 1 || quota.Window < time.Second || quota.Window%time.Second != 0 || quota.Validate() != nil {
			t.Fatalf("%q became %+v", text, quota)
		}
		if again, err := limit.ParseQuota(quota.String()); err != nil || again != quota {
			t.Fatalf("%q is written %q, which is read as %+v (%v)", text, quota, again, err)
		}
	})
}
