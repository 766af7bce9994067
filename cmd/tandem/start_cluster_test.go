//go:build unix

package main_test

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"tandem/internal/tandemtest"
)

// TestStartCluster starts three nodes as `make cluster` does, pastes what docs/scaling.md and the script itself say, kills a
// node, and ends all of it with Ctrl-C: nothing stays behind.
func TestStartCluster(t *testing.T) {
	t.Parallel()
	tandemtest.Postgres(t, tandemtest.Volatile) // skips where there is none
	page := regexp.MustCompile("(?s)```sh\nmake cluster[^\n]*\n(curl .*?)```").
		FindStringSubmatch(repositoryFile(t, "docs/scaling.md"))
	if page == nil || !strings.Contains(repositoryFile(t, "Makefile"), "\n\t@./start_cluster.sh\n") {
		t.Fatal("docs/scaling.md or the Makefile has no cluster")
	}
	script := filepath.Join(t.TempDir(), "start_cluster.sh")
	if err := errors.Join(
		os.WriteFile(script, []byte(repositoryFile(t, "start_cluster.sh")), 0o755),
		os.Symlink(binary, filepath.Join(filepath.Dir(script), "tandem")),
	); err != nil {
		t.Fatal(err)
	}
	first := freePorts(t, clusterNodes)
	cmd := exec.Command(script, strconv.Itoa(first))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a group of its own, as a terminal has it
	p := startCommand(t, cmd, nil)
	t.Cleanup(func() { // a kill would leave the nodes
		select {
		case <-p.exited:
		default:
			p.signal(t, terminate)
			p.exitCode(t)
		}
	})
	folder := p.awaitOutput(t, regexp.MustCompile(`Logs are in (\S+)\. `))[1]
	said := p.stdout.String()

	_, own, _ := strings.Cut(said, "what came of it:\n")
	own, _, _ = strings.Cut(own, "\nKill one")
	there := strings.NewReplacer(":8001", fmt.Sprint(":", first), ":8002", fmt.Sprint(":", first+1), ":8003", fmt.Sprint(":", first+2))
	for _, lines := range []string{own, there.Replace(page[1])} {
		ids := regexp.MustCompile(`"request_id":"(\w+)"`).FindAllStringSubmatch(paste(t, lines), -1)
		if len(ids) != 2 || ids[0][1] != ids[1][1] {
			t.Errorf("asked one node and read from another: %v", ids)
		}
	}

	nodes := regexp.MustCompile(`(?m)^  node \d  (http://\S+)  pid (\d+)$`).FindAllStringSubmatch(said, -1)
	if len(nodes) != clusterNodes {
		t.Fatalf("%d nodes in\n%s", len(nodes), said)
	}
	pids := make([]int, len(nodes))
	for i, node := range nodes {
		pids[i], _ = strconv.Atoi(node[2])
	}
	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if status := <-post(nodes[1][1]+"/sync", `{"data":{"n":1},"task":"echo"}`); status != http.StatusOK {
		t.Errorf("with one node killed another answers %d", status)
	}

	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if code := p.exitCode(t); code != 0 {
		t.Errorf("exit code %d after Ctrl-C\n%s", code, p.stderr.String())
	}
	if _, err := os.Stat(folder); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", folder, err)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("process %d is still there: %v", pid, err)
		}
	}
}

// TestStartClusterWithoutPostgreSQL: the script says what is missing.
func TestStartClusterWithoutPostgreSQL(t *testing.T) {
	t.Parallel()
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(t.TempDir(), "start_cluster.sh")
	text := strings.ReplaceAll(repositoryFile(t, "start_cluster.sh"), "/usr/lib/postgresql", t.TempDir())
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	p := startCommand(t, exec.Command(shell, script), []string{"PATH=" + t.TempDir()})
	if code := p.exitCode(t); code != 1 || !strings.HasPrefix(p.stderr.String(), "PostgreSQL is not installed") {
		t.Errorf("exit code %d\n%s", code, p.stderr.String())
	}
}

// TestComposeCluster runs the nodes of the profile `cluster` as docker-compose.yml has them, but on a PostgreSQL and at
// ports of this machine, and reads whether the load balancer knows all of them and what it asks them.
func TestComposeCluster(t *testing.T) {
	t.Parallel()
	c := readCompose(t)
	postgres, balancer := c.Services["postgres"], c.Services["balancer"]
	there := fmt.Sprintf("postgres://%s:%s@postgres:5432/%s?sslmode=disable", postgres.Environment["POSTGRES_USER"],
		postgres.Environment["POSTGRES_PASSWORD"], postgres.Environment["POSTGRES_DB"])
	here := tandemtest.Postgres(t, tandemtest.Volatile)
	var backends []string
	for name, service := range c.Services {
		if service.Profiles[0] != "cluster" || service.Image != "tandem" {
			continue
		}
		backends = append(backends, name+":8000")
		if service.Environment["TANDEM_DB"] != there {
			t.Errorf("%s: its database is %s, and PostgreSQL is at %s", name, service.Environment["TANDEM_DB"], there)
		}
		command := slices.Clone(service.Command)
		at := slices.Index(command, ":8000")
		if at < 0 {
			t.Fatalf("%s: does not listen at port 8000: %q", name, command)
		}
		command[at] = "127.0.0.1:0"
		p := start(t, []string{"TANDEM_DB=" + here, "TANDEM_DRAIN_DELAY=0s"}, command...)
		p.awaitReady(t)
	}
	slices.Sort(backends)
	if len(backends) != clusterNodes || len(balancer.Configs) != 1 {
		t.Fatalf("nodes %v, configurations of the balancer %v", backends, balancer.Configs)
	}
	caddyfile := c.Configs[balancer.Configs[0].Source].Content
	for _, want := range []string{"reverse_proxy " + strings.Join(backends, " ") + " {", "lb_policy round_robin", "health_uri /readyz"} {
		if !strings.Contains(caddyfile, want) {
			t.Errorf("no %q in\n%s", want, caddyfile)
		}
	}
}

// freePorts finds so many ports in a row that nobody uses just now, and returns the first.
func freePorts(t *testing.T, n int) int {
	t.Helper()
search:
	for range 100 {
		_, port, err := net.SplitHostPort(crashAddress(t))
		if err != nil {
			t.Fatal(err)
		}
		first, _ := strconv.Atoi(port)
		for i := range n {
			listener, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", first+i))
			if err != nil {
				continue search
			}
			listener.Close()
		}
		return first
	}
	t.Fatal("no free ports")
	return 0
}
