//go:build unix

package main_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"tandem"
	"tandem/internal/tandemtest"
)

// TestClockOff runs a node whose clock is an hour off that of its database, in both directions: what goes on record
// and what receivers check is by the database's clock, so is how long it is kept, and a retry waits neither an hour more nor an hour less. That
// nodes differ among themselves is what `make chaos` shows, which builds a tandem whose clock is off.
func TestClockOff(t *testing.T) {
	t.Parallel()
	for _, off := range []time.Duration{time.Hour, -time.Hour} {
		t.Run(off.String(), func(t *testing.T) {
			t.Parallel()
			database := tandemtest.Postgres(t, tandemtest.Volatile)
			setClock(t, database, off)
			old := keepRequest(t, database, time.Now().Add(off-40*time.Minute))
			young := keepRequest(t, database, time.Now().Add(off-10*time.Minute))
			p := startServe(t, "--db", database, "--drain-delay", "0s", "--callback-backoff", "1s", "--callback-max-age", "30m", "--retention", "30m")

			type try struct{ at, signed time.Time }
			tries := make(chan try, 10)
			receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				signed, err := strconv.ParseInt(r.Header.Get(tandem.HeaderWebhookTimestamp), 10, 64)
				if err != nil {
					t.Errorf("timestamp: %v", err)
				}
				if tries <- (try{time.Now(), time.Unix(signed, 0)}); len(tries) == 1 {
					w.WriteHeader(http.StatusInternalServerError)
				}
			}))
			defer receiver.Close()
			if status := <-post(p.url+"/async", fmt.Sprintf(`{"data":{"n":1},"task":"echo","callback_url":%q}`, receiver.URL)); status != http.StatusAccepted {
				t.Fatalf("POST /async answered %d", status)
			}
			if err := poll("the callback", func() error { return newestHas(p.url, string(tandem.StatusCallbackSent)) }); err != nil {
				t.Fatal(err)
			}
			first, second := <-tries, <-tries
			if apart := second.at.Sub(first.at); apart < time.Second {
				t.Errorf("tries %v apart, want at least 1s", apart)
			}
			r := newest(t, p.url)
			for what, at := range map[string]time.Time{
				"signed at": first.signed, "signed again at": second.signed, "created_at": r.CreatedAt, "started_at": r.StartedAt, "completed_at": r.CompletedAt,
				"the first attempt": r.Attempts[0].StartedAt, "the next one": r.Attempts[0].NextAt,
			} {
				if wrong := at.Sub(time.Now().Add(off)).Abs(); wrong > 2*patience {
					t.Errorf("%s %v, which is %v off the clock of the database", what, at, wrong)
				}
			}
			if err := poll("the end of what is too old", func() error {
				if status, _ := ask(t, http.MethodGet, p.url+"/requests/"+old, "", ""); status != http.StatusNotFound {
					return fmt.Errorf("it is answered %d", status)
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
			if status, _ := ask(t, http.MethodGet, p.url+"/requests/"+young, "", ""); status != http.StatusOK {
				t.Errorf("what is not is answered %d", status)
			}
			hour := func() int64 { return time.Now().Add(off).Unix() / 3600 }
			before := hour()
			if status := <-post(p.url+"/api/submit", `{"firstName":"A","lastName":"B"}`); status != http.StatusOK {
				t.Errorf("POST /api/submit answered %d", status)
			}
			counts := countersOf(t, database)
			if after := hour(); !strings.Contains(counts, fmt.Sprintf(`"recent/%d"`, before)) && !strings.Contains(counts, fmt.Sprintf(`"recent/%d"`, after)) {
				t.Errorf("a submission is counted in another hour than %d: %s", after, counts)
			}
			if !strings.Contains(p.stderr.String(), "the clock of this machine is compared with") {
				t.Errorf("nobody is told:\n%s", p.stderr.String())
			}
		})
	}
}

// keepRequest adds a request to the history that was made at a given time and has ended, and returns its id.
func keepRequest(t *testing.T, database string, made time.Time) string {
	t.Helper()
	raw, err := uuid.NewV7()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		raw[i] = byte(made.UnixMilli() >> (40 - 8*i))
	}
	onDatabase(t, database, func(ctx context.Context, db *pgx.Conn) error {
		_, err := db.Exec(ctx, `
			INSERT INTO requests (id, mode, task, status, callback_status, complexity, node, callback_url, data)
			VALUES ($1, 'sync', 'echo', 'completed', '', 1, '', '', '{"n":1}')`, raw.String())
		return err
	})
	return tandem.ID(raw)
}

// countersOf is what all counters of a database say.
func countersOf(t *testing.T, database string) (counts string) {
	t.Helper()
	onDatabase(t, database, func(ctx context.Context, db *pgx.Conn) error {
		return db.QueryRow(ctx, `SELECT string_agg(counts, ' ') FROM counters`).Scan(&counts)
	})
	return counts
}

func onDatabase(t *testing.T, database string, do func(context.Context, *pgx.Conn) error) {
	t.Helper()
	ctx := context.Background()
	db, err := pgx.Connect(ctx, database)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(ctx)
	if err := do(ctx, db); err != nil {
		t.Fatal(err)
	}
}

// newest returns the newest request with its attempts.
func newest(t *testing.T, url string) tandem.Request {
	t.Helper()
	read := func(path string, into any) {
		response, err := http.Get(url + path)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if err := json.NewDecoder(response.Body).Decode(into); err != nil {
			t.Fatal(err)
		}
	}
	var page []tandem.Request
	read("/requests?limit=1", &page)
	var r tandem.Request
	read("/requests/"+page[0].ID, &r)
	if len(r.Attempts) == 0 {
		t.Fatalf("no attempts: %+v", r)
	}
	return r
}

// setClock makes the schema and has all who use the database find its clock off: their now() is found before PostgreSQL's own.
func setClock(t *testing.T, database string, off time.Duration) {
	t.Helper()
	if out, err := exec.Command(binary, "migrate", "--db", database).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	seconds := strconv.Itoa(int(off.Seconds()))
	onDatabase(t, database, func(ctx context.Context, db *pgx.Conn) error {
		_, err := db.Exec(ctx, strings.ReplaceAll(`
		CREATE FUNCTION public.now() RETURNS timestamptz LANGUAGE sql STABLE AS $f$ SELECT pg_catalog.now() + interval 'OFF s' $f$;
		CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS $f$ SELECT pg_catalog.clock_timestamp() + interval 'OFF s' $f$;
		DO $$
		DECLARE c record;
		BEGIN
			FOR c IN SELECT * FROM information_schema.columns WHERE table_schema = 'public' AND lower(column_default) IN ('now()', 'current_timestamp') LOOP
				EXECUTE format('ALTER TABLE %I ALTER COLUMN %I SET DEFAULT public.now()', c.table_name, c.column_name);
			END LOOP;
			EXECUTE format('ALTER DATABASE %I SET search_path = public, pg_catalog', current_database());
		END
		$$`, "OFF", seconds))
		return err
	})
}

// skewVariable holds the seconds by which the clock of a binary of buildSkewed is ahead.
const skewVariable = "TANDEM_TEST_SKEW"

// buildSkewed builds tandem with a standard library whose clock can be set: everything is compiled anew, which takes a
// minute or two.
func buildSkewed(t *testing.T) string {
	t.Helper()
	folder := t.TempDir()
	original := filepath.Join(runtime.GOROOT(), "src", "time", "time.go") //nolint:staticcheck // the toolchain of this test builds the binary, too
	text, err := os.ReadFile(original)
	if err != nil {
		t.Fatal(err)
	}
	const reads = "\tsec, nsec, mono := runtimeNow()\n"
	skewed := strings.Replace(string(text), reads, reads+"\tsec += skew\n", 1) + `
var skew = func() (seconds int64) {
	text, _ := syscall.Getenv("` + skewVariable + `")
	negative := len(text) > 0 && text[0] == '-'
	for i := range len(text) {
		if text[i] >= '0' && text[i] <= '9' {
			seconds = 10*seconds + int64(text[i]-'0')
		}
	}
	if negative {
		seconds = -seconds
	}
	return seconds
}()
`
	skewed = strings.Replace(skewed, "import (\n", "import (\n\t\"syscall\"\n", 1)
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {original: filepath.Join(folder, "time.go")}})
	if err != nil {
		t.Fatal(err)
	}
	built := filepath.Join(folder, "tandem")
	for name, content := range map[string]string{"time.go": skewed, "overlay.json": string(overlay)} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("go", "build", "-overlay", filepath.Join(folder, "overlay.json"), "-o", built, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return built
}

// clockOff has one node's clock an hour ahead, then an hour behind. Receivers refuse what was signed more than five
// minutes ago or hence, so every callback that this node sends would have to be sent again.
func clockOff(t *testing.T, rounds int) {
	skewed := buildSkewed(t)
	c := newCluster(t, clusterDatabase(t), nil, "--callback-max-age", "30m")
	m := c.members[2]
	m.binary = skewed
	stop := c.callAll(t)
	for i := range 2 * rounds {
		seconds := 3600
		if i%2 == 1 {
			seconds = -3600
		}
		m.extra = []string{skewVariable + "=" + strconv.Itoa(seconds)}
		c.kill(t, m)
		m.start(t)
		pause(8 * time.Second)
		response, err := http.Get(m.callers.url + "/healthz")
		if err != nil {
			t.Fatal(err)
		}
		var health struct {
			Timestamp time.Time `json:"timestamp"`
		}
		err = json.NewDecoder(response.Body).Decode(&health)
		response.Body.Close()
		if off := time.Until(health.Timestamp) - time.Duration(seconds)*time.Second; err != nil || off.Abs() > patience {
			t.Errorf("the clock of %s says %v (%v): it was not set", m.name, health.Timestamp, err)
		}
	}
	stop()
	c.finish(t)
}
