# `make` or `make help` lists what there is. Everything works with Go alone, except where a line says so.

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null)
LDFLAGS := $(if $(VERSION),-X tandem.Version=$(VERSION))
BUILD   := CGO_ENABLED=0 go build -trimpath -ldflags '-s -w $(LDFLAGS)'
TOOL    := go tool -modfile=tools/go.mod
AIR     := go run github.com/air-verse/air@v1.67.4

# How long each fuzz target runs, how often `make crash` kills the server, how often `make chaos` does what CI
# does once, how many operations `make oracle` does and which, and how long `make soak` runs.
FUZZTIME      ?= 20s
CRASH_ROUNDS  ?= 500
CHAOS_ROUNDS  ?= 20
SOAK_DURATION ?= 10m
ORACLE_OPERATIONS ?= 10000000
ORACLE_SEED       ?=

.DEFAULT_GOAL := help
.PHONY: help demo dev cluster test race busy lint vuln build cross ci crash chaos oracle soak abuse bench bench-postgres fuzz clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## both ways of asking for work, side by side
	go run ./cmd/tandem demo

dev: ## the server in demo mode, built and started again whenever a source file changes (.air.toml)
	DEBUG=true $(AIR)

test: ## all tests
	go test ./...

race: ## all tests with the race detector, but few of cmd/tandem's, in random order (needs a C compiler)
	go test -race -gcflags='modernc.org/...=-d=checkptr=0' -shuffle=on ./...

busy: ## all tests beside two busy processes, as on a machine that others use as well
	.ci/busy go test -count=1 -timeout 60m ./...

lint: ## golangci-lint with .golangci.yml (the first run builds it)
	$(TOOL) golangci-lint run ./...

vuln: ## known vulnerabilities in what is reachable (needs the network)
	$(TOOL) govulncheck ./...

cluster: ## three nodes on one throwaway PostgreSQL, which has to be installed; Ctrl-C ends all of it
	@$(MAKE) build
	@./start_cluster.sh

build: ## static binary for this machine: bin/tandem
	$(BUILD) -o bin/tandem ./cmd/tandem

cross: ## static binaries for Windows, macOS and Linux: dist/
	GOOS=linux   GOARCH=amd64 $(BUILD) -o dist/tandem-linux-amd64       ./cmd/tandem
	GOOS=linux   GOARCH=arm64 $(BUILD) -o dist/tandem-linux-arm64       ./cmd/tandem
	GOOS=darwin  GOARCH=arm64 $(BUILD) -o dist/tandem-darwin-arm64      ./cmd/tandem
	GOOS=windows GOARCH=amd64 $(BUILD) -o dist/tandem-windows-amd64.exe ./cmd/tandem

ci: ## everything that must hold before a change lands
	.ci/run

crash: ## kill the real binary CRASH_ROUNDS times (500) and look for anything lost
	TANDEM_CRASH_ROUNDS=$(CRASH_ROUNDS) go test ./cmd/tandem -run TestCrash -timeout 60m -count=1 -v

chaos: ## three nodes on one PostgreSQL: killed, stopped, cut off, held up, their clocks set, replaced, CHAOS_ROUNDS times (20) what CI does
	TANDEM_CHAOS_ROUNDS=$(CHAOS_ROUNDS) go test ./cmd/tandem -run TestChaos -timeout 24h -count=1 -v

oracle: ## ORACLE_OPERATIONS random operations (10,000,000) on every store and on a model, by ORACLE_SEED (another each time): any difference is a fault
	TANDEM_ORACLE_OPERATIONS=$(ORACLE_OPERATIONS) TANDEM_ORACLE_SEED=$(ORACLE_SEED) go test ./internal/store/storetest -run TestOracle -timeout 240h -count=1 -v

soak: ## run server and generator in turn for SOAK_DURATION (10m) each: memory, goroutines and files stay level
	SOAK_DURATION=$(SOAK_DURATION) go test ./cmd/tandem -run 'TestSoak|TestLoadMemory' -parallel 1 -timeout 24h -count=1 -v

abuse: ## slow clients, 100,000 fuzzed requests and a million addresses against the real binary (docs/security-figures.md)
	TANDEM_ABUSE=full go test ./cmd/tandem -run TestAbuse -parallel 1 -timeout 60m -count=1 -v

bench: ## the figures of docs/performance.md beside what was asked (15 minutes, on a quiet machine), then every package
	go test -run '^$$' -bench . -skip Postgres -benchtime 1x -v -timeout 30m ./cmd/tandem
	go test -run '^$$' -bench . -benchmem ./internal/...

bench-postgres: ## the figures with PostgreSQL, a throwaway one on this machine (8 minutes; SNAPSHOT_DURATION=10m: 17)
	go test -run '^$$' -bench Postgres -benchtime 1x -v -timeout 30m ./cmd/tandem

fuzz: ## every native fuzz target for FUZZTIME (20s) each
	@grep -rnoE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' . | sed -E 's|^(.*)/[^/]+:[0-9]+:func |\1 |' | \
	while read -r dir target; do \
	  echo "$$dir $$target"; \
	  go test "$$dir" -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) </dev/null || exit 1; \
	done

clean: ## remove what was built
	rm -rf bin dist
