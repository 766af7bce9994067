package main

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"github.com/google/go-cmp/cmp"

	"tandem/internal/app"
)

var update = flag.Bool("update", false, "rewrite docs/configuration.md")

// TestConfigurationPage generates the tables of docs/configuration.md from the flags of serve, and compares.
// With -update it writes them.
func TestConfigurationPage(t *testing.T) {
	t.Parallel()
	const path = "../../docs/configuration.md"
	var grammar commandLine
	parser, err := newParser(&grammar)
	if err != nil {
		t.Fatal(err)
	}
	commands := parser.Model.Children
	serve := commands[slices.IndexFunc(commands, func(n *kong.Node) bool { return n.Name == "serve" })]
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	for name, table := range map[string]string{"modes": modeTable(serve.Flags, grammar.Serve.presets),
		"flags": flagTables(serve.Flags, grammar.Serve.presets)} {
		before, rest, begins := strings.Cut(page, "<!-- generated: "+name+" -->\n")
		_, after, ends := strings.Cut(rest, "<!-- end -->\n")
		if !begins || !ends {
			t.Fatalf("%s has no block for the %s", path, name)
		}
		page = before + "<!-- generated: " + name + " -->\n" + table + "<!-- end -->\n" + after
	}
	if *update {
		if err := os.WriteFile(path, []byte(page), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(text), page); diff != "" {
		t.Errorf("run go test ./cmd/tandem -run %s -update (-page +flags):\n%s", t.Name(), diff)
	}
}

// modeTable lists the flags that have presets.
func modeTable(flags []*kong.Flag, presets map[*kong.Flag]preset) string {
	var b strings.Builder
	fmt.Fprintf(&b, "| flag | %s | %s |\n|---|---|---|\n", app.Demo, app.Production)
	for _, f := range flags {
		if p, ok := presets[f]; ok {
			b.WriteString("| `--" + f.Name + p.text("` | `%s` | `%s` |\n"))
		}
	}
	return b.String()
}

// flagTables lists all flags, a table for each group.
func flagTables(flags []*kong.Flag, presets map[*kong.Flag]preset) string {
	var b strings.Builder
	group := ""
	for _, f := range flags {
		if f.Group == nil {
			continue // --help
		}
		if f.Group.Key != group {
			group = f.Group.Key
			fmt.Fprintf(&b, "\n### %s\n\n| flag | variable | default | meaning |\n|---|---|---|---|\n",
				strings.TrimSuffix(group, ":"))
		}
		fmt.Fprintf(&b, "| `--%s` | `%s` | %s | %s |\n", f.Name, strings.Join(f.Envs, "`, `"),
			defaultOf(f, presets), meaning(f))
	}
	return b.String() + "\n"
}

// defaultOf is the cell of a flag's default; empty: there is none, or the meaning names it.
func defaultOf(f *kong.Flag, presets map[*kong.Flag]preset) string {
	p, ok := presets[f]
	switch {
	case ok:
		return p.text("demo: `%s`<br>production: `%s`")
	case f.IsBool():
		return "off"
	case f.HasDefault:
		return "`" + f.Default + "`"
	}
	return ""
}

// code matches what is set as code in a sentence: flags, URLs, headers, error codes and paths.
var code = regexp.MustCompile(`--[a-z]+(?:-[a-z]+)*|@FILE|:memory:|file:PATH|host=… dbname=…|X-Forwarded-[A-Z]\w+|` +
	`[A-Z]+_[A-Z]+|[a-z]+://[\w@./]*\w|\B/[a-z.]+(?:[/-][a-z.]*[a-z])*`)

// meaning is the cell of a flag's help, without the default, which has a cell of its own.
func meaning(f *kong.Flag) string {
	text := strings.Replace(f.Help, " (default: "+f.Default+")", "", 1)
	return code.ReplaceAllString(strings.ReplaceAll(text, "|", `\|`), "`$0`")
}
