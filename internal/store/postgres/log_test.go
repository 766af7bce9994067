package postgres_test

import (
	"bytes"
	"log/slog"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tandem/internal/store/postgres"
)

// TestRiverLog: of what River says, an operator reads warnings, and none of those that
// come of a database that is away.
func TestRiverLog(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		level   slog.Level
		failing bool
		want    []string
	}{
		"all is well":                        {slog.LevelInfo, false, []string{"WARN stuck", "ERROR fetch"}},
		"the database is away":               {slog.LevelInfo, true, nil},
		"all is well, and debugged":          {slog.LevelDebug, false, []string{"DEBUG begun", "INFO counts", "WARN stuck", "ERROR fetch"}},
		"the database is away, and debugged": {slog.LevelDebug, true, []string{"DEBUG begun", "INFO counts", "WARN stuck", "ERROR fetch"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var text bytes.Buffer
			handler := slog.NewTextHandler(&text, &slog.HandlerOptions{Level: test.level})
			log := slog.New(postgres.NewRiverLog(handler, func() bool { return test.failing })).With("part", "river").WithGroup("of")
			log.Debug("begun")
			log.Info("counts")
			log.Warn("stuck")
			log.Error("fetch", "job", 1)
			var got []string
			for _, line := range regexp.MustCompile(`level=(\w+) msg=(\w+)`).FindAllStringSubmatch(text.String(), -1) {
				got = append(got, line[1]+" "+line[2])
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
			if test.want != nil && !strings.Contains(text.String(), "part=river of.job=1") {
				t.Errorf("attributes are missing:\n%s", text.String())
			}
		})
	}
}
