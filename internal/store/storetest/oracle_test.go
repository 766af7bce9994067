package storetest_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"tandem/internal/app"
	"tandem/internal/store"
	"tandem/internal/store/postgres"
	"tandem/internal/store/storetest"
	"tandem/internal/tandemtest"
)

// steps is how many operations a sequence has, on average.
const steps = 300

// workers do sequences at the same time: much of it is waiting.
var workers = []struct {
	name    string
	percent uint64 // of the operations
	setting func(t testing.TB, sequence int) storetest.Setting
}{
	{"nodes", 4, nodes},
	{"sqlite", 15, crashing},
	{"sqlite", 15, crashing},
	{"sqlite", 15, crashing},
	{"sqlite", 15, crashing},
	{"all stores", 6, allStores},
	{"all stores", 6, allStores},
	{"all stores", 6, allStores},
	{"queue quota", 9, queueQuota},
	{"bytes quota", 9, bytesQuota},
}

// TestOracle does the same random operations on the model, on SQLite and on PostgreSQL, and compares what they
// answer and what they keep. TANDEM_ORACLE_OPERATIONS is how many (10,000), TANDEM_ORACLE_SEED which; `make oracle`.
func TestOracle(t *testing.T) {
	t.Parallel()
	operations := environment(t, "TANDEM_ORACLE_OPERATIONS", 10_000)
	seed := environment(t, "TANDEM_ORACLE_SEED", rand.Uint64N(1<<32))
	t.Logf("TANDEM_ORACLE_SEED=%d", seed)
	set(t, "rapid.steps", steps)
	counts := storetest.NewCounts()
	var group sync.WaitGroup
	var ran atomic.Int64 // workers: not all with -run
	for i, worker := range workers {
		set(t, "rapid.checks", operations*worker.percent/100/steps+1)
		set(t, "rapid.seed", seed+uint64(i)<<32+1) // 0 would be another each time
		begun := make(chan struct{})
		begin := sync.OnceFunc(func() { close(begun) })
		group.Go(func() {
			defer begin()
			t.Run(worker.name, func(t *testing.T) {
				ran.Add(1)
				sequence := 0
				rapid.Check(t, func(rt *rapid.T) {
					begin() // it has read what was set
					scope := &storetest.Scope{TB: t}
					defer scope.End()
					storetest.Check(rt, worker.setting(scope, sequence), counts)
					sequence++
				})
			})
		})
		<-begun
	}
	group.Wait()
	if !t.Failed() && int(ran.Load()) == len(workers) {
		counts.Check(t)
	}
}

// nodes share a database. To take over from one that was cut off takes some 10 s, so few sequences do it.
func nodes(t testing.TB, sequence int) storetest.Setting {
	const cuts = 10
	return storetest.Setting{Databases: []storetest.Database{server(t, 2)}, Restarts: 2, Cut: sequence%cuts == 0}
}

// crashing is what can be crashed.
func crashing(t testing.TB, _ int) storetest.Setting {
	return storetest.Setting{Databases: []storetest.Database{file(t), memory()}, MaxQueue: 30, Restarts: 20}
}

func allStores(t testing.TB, _ int) storetest.Setting {
	return storetest.Setting{
		Databases: []storetest.Database{file(t), memory(), server(t, 1)}, MaxQueue: 25, Restarts: 1,
	}
}

func queueQuota(t testing.TB, sequence int) storetest.Setting {
	s := allStores(t, sequence)
	s.MaxPerOwner = 7
	return s
}

func bytesQuota(t testing.TB, sequence int) storetest.Setting {
	s := allStores(t, sequence)
	s.MaxBytesPerOwner = 20_000
	return s
}

func open(url string) func(store.Config) (store.Store, error) {
	return func(cfg store.Config) (store.Store, error) {
		cfg.URL, cfg.Log = url, slog.New(slog.DiscardHandler)
		return app.OpenStore(context.Background(), cfg)
	}
}

func memory() storetest.Database {
	return storetest.Database{Name: "memory", Open: open(":memory:"), Volatile: true}
}

func server(t testing.TB, nodes int) storetest.Database {
	url := tandemtest.PostgresFrom(t, tandemtest.Volatile, "tandem_oracle", func(url string) error {
		return postgres.Migrate(context.Background(), url)
	})
	if nodes == 1 {
		return storetest.Database{Name: "postgres", Open: open(url), Shared: true}
	}
	var lines []*line // a node each
	return storetest.Database{
		Name: "nodes", Nodes: nodes, Shared: true,
		Open: func(limits store.Config) (store.Store, error) {
			l, url := newLine(t, url)
			lines = append(lines, l)
			return open(url)(limits)
		},
		Cut: func(node int, cut bool) { lines[node].set(cut) },
	}
}

// file is a database file. What a crash leaves is a copy, made while nothing is written.
func file(t testing.TB) storetest.Database {
	// In memory where there is such a folder: no disk is waited for.
	folder, err := os.MkdirTemp("/dev/shm", "oracle") //nolint:usetesting // as below
	if err != nil {
		folder, err = os.MkdirTemp("", "oracle") //nolint:usetesting // it goes with the sequence, not with the test
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(folder); err != nil {
			t.Error(err)
		}
	})
	crashes := 0
	path := func() string { return filepath.Join(folder, fmt.Sprintf("tandem%d.db", crashes)) }
	return storetest.Database{
		Name: "file",
		Open: func(limits store.Config) (store.Store, error) { return open(path())(limits) },
		Crash: func() error {
			before := path()
			crashes++
			return errors.Join(copyFile(path(), before), copyFile(path()+"-wal", before+"-wal"))
		},
	}
}

func copyFile(to, from string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(target, source)
	return errors.Join(err, target.Close())
}

// environment reads a number, which is otherwise.
func environment(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s=%q: want a number", name, text)
	}
	return n
}

// set sets a flag of rapid, which has no other configuration.
func set(t *testing.T, name string, value uint64) {
	t.Helper()
	if err := flag.Set(name, strconv.FormatUint(value, 10)); err != nil {
		t.Fatal(err)
	}
}
