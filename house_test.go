package tandem_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// These tests keep the documents true to the repository. They read files only, relative to the
// root package's folder, which is the root of the repository.

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// section returns what stands between a second-level heading and the next one.
func section(t *testing.T, text, heading string) string {
	t.Helper()
	_, after, found := strings.Cut(text, "\n## "+heading+"\n")
	if !found {
		t.Fatalf("no section %q", heading)
	}
	body, _, _ := strings.Cut(after, "\n## ")
	return body
}

// rows returns the cells of the body rows of all tables in text.
func rows(text string) [][]string {
	var found [][]string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "|---") && len(found) > 0 {
			found = found[:len(found)-1] // the line before was the heading
		} else if inner, ok := strings.CutPrefix(line, "|"); ok {
			var cells []string
			for cell := range strings.SplitSeq(strings.TrimSuffix(inner, "|"), "|") {
				cells = append(cells, strings.TrimSpace(cell))
			}
			found = append(found, cells)
		}
	}
	return found
}

// sourceFiles returns every file of the repository whose name ends in suffix, vendored assets aside.
func sourceFiles(t *testing.T, suffix string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && (entry.Name() == ".git" || entry.Name() == "third_party" || entry.Name() == "testdata") {
			return filepath.SkipDir
		}
		if strings.HasSuffix(path, suffix) {
			found = append(found, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestReadmeBeginsWithCommands: a newcomer types these, and .ci/run runs the first two.
func TestReadmeBeginsWithCommands(t *testing.T) {
	t.Parallel()
	readme := readFile(t, "README.md")
	before, after, found := strings.Cut(readme, "\n```sh\n")
	if !found || strings.Contains(before, "\n## ") || strings.Contains(before, "```") {
		t.Fatal("the first section of the README does not begin with a block of commands")
	}
	block, _, _ := strings.Cut(after, "```")
	if diff := cmp.Diff("go run ./cmd/tandem demo\ngo test ./...\ngo run ./cmd/tandem serve\n", block); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestReadmeIsShort: the README is an introduction; details belong under docs.
func TestReadmeIsShort(t *testing.T) {
	t.Parallel()
	if words := len(strings.Fields(readFile(t, "README.md"))); words > 1300 {
		t.Errorf("the README has %d words, want at most 1300", words)
	}
}

// namedTest finds tests that a document names.
var namedTest = regexp.MustCompile("`((?:Test|Fuzz|Example)\\w*)[/`]")

// testNames returns every test of the repository.
func testNames(t *testing.T) map[string]bool {
	t.Helper()
	tests := map[string]bool{}
	declaration := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Example)\w*)\(`)
	for _, path := range sourceFiles(t, "_test.go") {
		for _, match := range declaration.FindAllStringSubmatch(readFile(t, path), -1) {
			tests[match[1]] = true
		}
	}
	return tests
}

// TestThreatsNameWhatExists: every threat in the security guide names tests that exist, and checks
// that the audit has.
func TestThreatsNameWhatExists(t *testing.T) {
	t.Parallel()
	tests := testNames(t)
	var checks strings.Builder
	for _, path := range sourceFiles(t, ".go") {
		if strings.HasPrefix(filepath.ToSlash(path), "internal/audit/") && !strings.HasSuffix(path, "_test.go") {
			checks.WriteString(readFile(t, path))
		}
	}
	threats := rows(section(t, readFile(t, "docs/PRODUCTION_SECURITY.md"), "Who might do what"))
	if len(threats) < 10 {
		t.Errorf("%d threats, want at least 10", len(threats))
	}
	for _, row := range threats {
		names := namedTest.FindAllStringSubmatch(row[3], -1)
		if len(names) == 0 {
			t.Errorf("%s %s: no test is named", row[0], row[1])
		}
		for _, name := range names {
			if !tests[name[1]] {
				t.Errorf("%s %s: %s does not exist", row[0], row[1], name[1])
			}
		}
		for _, id := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[4], -1) {
			if !strings.Contains(checks.String(), `"`+id[1]+`"`) {
				t.Errorf("%s %s: the audit has no %s", row[0], row[1], id[1])
			}
		}
	}
}

// TestGuarantees: every guarantee names the tests that prove it, and they exist. The README has the same sentences.
func TestGuarantees(t *testing.T) {
	t.Parallel()
	tests := testNames(t)
	guarantees := rows(readFile(t, "docs/guarantees.md"))
	if len(guarantees) != 7 {
		t.Errorf("%d guarantees, want 7", len(guarantees))
	}
	var list strings.Builder
	for _, row := range guarantees {
		fmt.Fprintf(&list, "%s. %s ", row[0], row[1])
		names := namedTest.FindAllStringSubmatch(row[len(row)-1], -1)
		if len(names) == 0 {
			t.Errorf("guarantee %s names no test", row[0])
		}
		for _, name := range names {
			if !tests[name[1]] {
				t.Errorf("guarantee %s names %s, which does not exist", row[0], name[1])
			}
		}
	}
	numbered, _, _ := strings.Cut(strings.TrimSpace(section(t, readFile(t, "README.md"), "Guarantees")), "\n\n")
	if diff := cmp.Diff(strings.Fields(list.String()), strings.Fields(numbered)); diff != "" {
		t.Errorf("guarantees (-docs/guarantees.md +README):\n%s", diff)
	}
}

// TestConfigurationListsEveryFlag: docs/configuration.md lists the flags of `serve`, all of them and no others. Each
// flag has a variable, from whose name its own follows.
func TestConfigurationListsEveryFlag(t *testing.T) {
	t.Parallel()
	var flags, listed []string
	variable := regexp.MustCompile(`\benv:"TANDEM_(\w+)"`)
	code := readFile(t, "internal/app/config.go") + readFile(t, "cmd/tandem/config.go")
	for _, match := range variable.FindAllStringSubmatch(code, -1) {
		flags = append(flags, "--"+strings.ToLower(strings.ReplaceAll(match[1], "_", "-")))
	}
	for _, row := range rows(section(t, readFile(t, "docs/configuration.md"), "Flags")) {
		if flag := strings.Trim(row[0], "`"); strings.HasPrefix(flag, "--") {
			listed = append(listed, flag)
		}
	}
	slices.Sort(flags)
	slices.Sort(listed)
	if diff := cmp.Diff(flags, listed); diff != "" {
		t.Errorf("flags in docs/configuration.md (-code +page):\n%s", diff)
	}
}

// TestDocumentLinks: every link to a file of the repository leads to one.
func TestDocumentLinks(t *testing.T) {
	t.Parallel()
	link := regexp.MustCompile(`\]\(([^)#\s]+)[^)]*\)`)
	checked := 0
	for _, path := range sourceFiles(t, ".md") {
		for _, match := range link.FindAllStringSubmatch(readFile(t, path), -1) {
			if strings.Contains(match[1], "://") {
				continue
			}
			checked++
			if _, err := os.Stat(filepath.Join(filepath.Dir(path), filepath.FromSlash(match[1]))); err != nil {
				t.Errorf("%s links to %s: %v", path, match[1], err)
			}
		}
	}
	if checked < 10 {
		t.Errorf("only %d links found: is the pattern still right?", checked)
	}
}

// TestDecisionsAreListed: every record has its line in the index.
func TestDecisionsAreListed(t *testing.T) {
	t.Parallel()
	records, err := filepath.Glob("docs/decisions/[0-9]*.md")
	if err != nil || len(records) < 5 {
		t.Fatalf("records %v, %v", records, err)
	}
	index := readFile(t, "docs/decisions/README.md")
	for _, record := range records {
		if !strings.Contains(index, "]("+filepath.Base(record)+")") {
			t.Errorf("docs/decisions/README.md does not list %s", record)
		}
	}
}

// TestDependenciesHaveReasons: decision 5 has a line for every direct dependency, and for no other.
func TestDependenciesHaveReasons(t *testing.T) {
	t.Parallel()
	var required, explained []string
	direct := regexp.MustCompile(`(?m)^(?:require )?\t?([\w.-]+\.\w+/\S+) v\S+$`) // no "// indirect" behind
	for _, match := range direct.FindAllStringSubmatch(readFile(t, "go.mod"), -1) {
		required = append(required, match[1])
	}
	record, _, _ := strings.Cut(readFile(t, "docs/decisions/0005-dependencies.md"), "**Not obtainable.**")
	for _, row := range rows(record) {
		explained = append(explained, strings.Trim(row[0], "`"))
		if len(row) != 3 || len(row[2]) < 10 {
			t.Errorf("%s: no reason", row[0])
		}
	}
	slices.Sort(required)
	slices.Sort(explained)
	if diff := cmp.Diff(required, explained); diff != "" {
		t.Errorf("direct dependencies (-go.mod +record):\n%s", diff)
	}
}
