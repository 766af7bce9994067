package main_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// These tests keep the files of the workflow (Dockerfile, docker-compose.yml, .air.toml, .vscode and the scripts to
// click on) true to the binary: what they run exists.

// repositoryFile reads a file of the repository.
func repositoryFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// dockerStep is one instruction of a Dockerfile.
type dockerStep struct{ word, rest string }

// dockerStage returns the instructions of a stage, its FROM aside; "" is the last one.
func dockerStage(t *testing.T, name string) []dockerStep {
	t.Helper()
	var stage []dockerStep
	wanted := false
	text := strings.ReplaceAll(repositoryFile(t, "Dockerfile"), "\\\n", "")
	for line := range strings.Lines(text) {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case word == "FROM":
			_, as, _ := strings.Cut(rest, " AS ")
			if wanted = as == name; wanted {
				stage = nil
			}
		case wanted && word != "" && !strings.HasPrefix(word, "#"):
			stage = append(stage, dockerStep{word, rest})
		}
	}
	if len(stage) == 0 {
		t.Fatalf("no stage %q in the Dockerfile", name)
	}
	return stage
}

// execForm reads ["a", "b"].
func execForm(t *testing.T, text string) []string {
	t.Helper()
	var args []string
	if err := json.Unmarshal([]byte(text), &args); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return args
}

// compose is what is read of docker-compose.yml.
type compose struct {
	Services map[string]struct {
		Profiles    []string          `yaml:"profiles"`
		Image       string            `yaml:"image"`
		Command     []string          `yaml:"command"`
		Environment map[string]string `yaml:"environment"`
		Ports       []string          `yaml:"ports"`
		Volumes     []string          `yaml:"volumes"`
		Configs     []struct {
			Source string `yaml:"source"`
		} `yaml:"configs"`
		Build struct {
			Target string `yaml:"target"`
		} `yaml:"build"`
	} `yaml:"services"`
	Configs map[string]struct {
		Content string `yaml:"content"`
	} `yaml:"configs"`
	Volumes map[string]any `yaml:"volumes"`
}

// readCompose reads docker-compose.yml.
func readCompose(t *testing.T) compose {
	t.Helper()
	var c compose
	if err := yaml.Unmarshal([]byte(repositoryFile(t, "docker-compose.yml")), &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// launch is what is read of .vscode/launch.json.
type launch struct {
	Configurations []struct {
		Name    string   `json:"name"`
		Request string   `json:"request"`
		Mode    string   `json:"mode"`
		Program string   `json:"program"`
		Args    []string `json:"args"`
	} `json:"configurations"`
}

// commands collects every command line of the workflow that runs tandem, without its program, by
// where it stands.
func commands(t *testing.T) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	for _, step := range append(dockerStage(t, ""), dockerStage(t, "dev")...) {
		switch step.word {
		case "CMD":
			args := execForm(t, step.rest)
			if args[0] == "air" { // the debugger's command line ends with tandem's
				_, tandem, ok := strings.Cut(args[len(args)-1], " -- ")
				if !ok {
					t.Errorf("Dockerfile: no arguments for tandem in %q", args)
				}
				args = strings.Fields(tandem)
			}
			found["Dockerfile CMD "+strings.Join(args, " ")] = args
		case "HEALTHCHECK":
			_, command, _ := strings.Cut(step.rest, "CMD ")
			found["Dockerfile HEALTHCHECK"] = execForm(t, command)[1:]
		}
	}
	for name, service := range readCompose(t).Services {
		if len(service.Command) > 0 {
			found["docker-compose.yml "+name] = service.Command
		}
	}
	var configured launch
	if err := json.Unmarshal([]byte(repositoryFile(t, ".vscode/launch.json")), &configured); err != nil {
		t.Fatal(err)
	}
	kinds := map[string]bool{}
	for _, configuration := range configured.Configurations {
		kinds[configuration.Request+" "+configuration.Mode] = true
		if strings.HasSuffix(configuration.Program, "/cmd/tandem") {
			found["launch.json "+configuration.Name] = configuration.Args
		}
	}
	for _, kind := range []string{"launch debug", "launch test", "attach local", "attach remote"} {
		if !kinds[kind] {
			t.Errorf("launch.json: no %s", kind)
		}
	}
	for i, entry := range regexp.MustCompile(`(?m)^entrypoint = (\[.*\])$`).FindAllStringSubmatch(repositoryFile(t, ".air.toml"), -1) {
		found[".air.toml "+string(rune('0'+i))] = execForm(t, entry[1])[1:]
	}
	run := regexp.MustCompile(`(?m)^ *(?:exec )?(?:\./tandem|bin/tandem|"%%b"|go run \./cmd/tandem) (.*?)\r?$`)
	for _, script := range []string{"start_server.sh", "start_server.bat"} {
		for i, match := range run.FindAllStringSubmatch(repositoryFile(t, script), -1) {
			found[script+" "+string(rune('0'+i))] = strings.Fields(strings.NewReplacer(`"$@"`, "", "%*", "").Replace(match[1]))
		}
	}
	return found
}

// TestWorkflowCommands: every command, flag and variable that a file of the workflow uses is one of the binary's.
func TestWorkflowCommands(t *testing.T) {
	t.Parallel()
	help := func(command ...string) string {
		out, err := exec.Command(binary, append(command, "--help")...).Output()
		if err != nil {
			t.Fatalf("%v --help: %v", command, err)
		}
		return string(out)
	}
	flag := regexp.MustCompile(`--[a-z-]+`)
	lines := commands(t)
	for where, args := range lines {
		if len(args) == 0 || !regexp.MustCompile(`(?m)^ +`+regexp.QuoteMeta(args[0])+`\b`).MatchString(help()) {
			t.Errorf("%s: %q is no command", where, args)
			continue
		}
		known := flag.FindAllString(help(args[0]), -1)
		for _, used := range flag.FindAllString(strings.Join(args[1:], " "), -1) {
			if !slices.Contains(known, used) {
				t.Errorf("%s: tandem %s has no %s", where, args[0], used)
			}
		}
	}
	if len(lines) < 14 {
		t.Errorf("only %d command lines found: are the patterns still right?", len(lines))
	}
	serve := help("serve")
	for _, name := range []string{"Dockerfile", "docker-compose.yml", ".air.toml", "Makefile", "start_server.sh", "start_server.bat"} {
		for _, variable := range regexp.MustCompile(`TANDEM_[A-Z_]*[A-Z]`).FindAllString(repositoryFile(t, name), -1) {
			ofTests := slices.Contains([]string{
				"TANDEM_CRASH_ROUNDS", "TANDEM_CHAOS_ROUNDS",
				"TANDEM_ORACLE_OPERATIONS", "TANDEM_ORACLE_SEED", "TANDEM_ABUSE",
			}, variable)
			if !ofTests && !strings.Contains(serve, "$"+variable) {
				t.Errorf("%s: %s is no variable of serve", name, variable)
			}
		}
	}
}

// TestWorkflowFilesAgree: what one file of the workflow takes from another is there.
func TestWorkflowFilesAgree(t *testing.T) {
	t.Parallel()
	makefile, dockerfile := repositoryFile(t, "Makefile"), repositoryFile(t, "Dockerfile")
	for _, name := range []string{".vscode/tasks.json", "docs/development.md", "README.md", "CONTRIBUTING.md"} {
		targets := regexp.MustCompile("(?:\"|`|\n)make ([a-z]+)").FindAllStringSubmatch(repositoryFile(t, name), -1)
		if len(targets) == 0 {
			t.Errorf("%s names no target of make", name)
		}
		for _, target := range targets {
			if !strings.Contains(makefile, "\n"+target[1]+": ## ") {
				t.Errorf("%s: make %s is no target", name, target[1])
			}
		}
	}
	air := regexp.MustCompile(`air-verse/air@(v[\d.]+)`)
	if a, b := air.FindString(makefile), air.FindString(dockerfile); a == "" || a != b {
		t.Errorf("make dev runs %q, the container %q", a, b)
	}
	needed := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(repositoryFile(t, "go.mod"))[1]
	for _, image := range regexp.MustCompile(`FROM golang:(\S+)`).FindAllStringSubmatch(dockerfile, -1) {
		if image[1] != needed {
			t.Errorf("the Dockerfile builds with Go %s, go.mod asks for %s", image[1], needed)
		}
	}
	for _, file := range []string{"settings", "extensions", "tasks", "launch"} {
		if text := repositoryFile(t, ".vscode/"+file+".json"); !json.Valid([]byte(text)) {
			t.Errorf("%s.json is no JSON", file)
		}
	}
	exposed := " "
	for _, stage := range []string{"", "dev"} {
		for _, step := range dockerStage(t, stage) {
			if step.word == "EXPOSE" {
				exposed += step.rest + " "
			}
		}
	}
	c := readCompose(t)
	for name, service := range c.Services {
		if len(service.Profiles) != 1 || service.Profiles[0] != name && service.Profiles[0] != "cluster" {
			t.Errorf("%s: profiles %v", name, service.Profiles)
		}
		for _, port := range service.Ports {
			if inside := port[strings.LastIndex(port, ":")+1:]; !strings.HasPrefix(port, "127.0.0.1:") || !strings.Contains(exposed, " "+inside+" ") {
				t.Errorf("%s: port %s is not for this machine, or not exposed", name, port)
			}
		}
		for _, mount := range service.Volumes {
			volume, _, _ := strings.Cut(mount, ":")
			if _, declared := c.Volumes[volume]; volume != "." && !declared {
				t.Errorf("%s: volume %s is not declared", name, volume)
			}
		}
		if service.Build.Target != "" {
			dockerStage(t, service.Build.Target)
		}
	}
	if len(c.Services) != 8 {
		t.Errorf("%d services", len(c.Services))
	}
}

// TestStartServerBat: Windows wants CRLF, and every label that is jumped to.
func TestStartServerBat(t *testing.T) {
	t.Parallel()
	text := repositoryFile(t, "start_server.bat")
	if lines := strings.Count(text, "\n"); lines == 0 || strings.Count(text, "\r\n") != lines {
		t.Errorf("%d of %d lines end with CRLF", strings.Count(text, "\r\n"), lines)
	}
	if !strings.Contains(repositoryFile(t, ".gitattributes"), "\n*.bat text eol=crlf\n") {
		t.Error("a checkout may change the line endings")
	}
	for _, jump := range regexp.MustCompile(`goto (\w+)`).FindAllStringSubmatch(text, -1) {
		if !strings.Contains(text, "\r\n:"+jump[1]+"\r\n") {
			t.Errorf("no label %s", jump[1])
		}
	}
}
