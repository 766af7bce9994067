package term_test

import (
	"bytes"
	"errors"
	"io/fs"
	"strings"
	"syscall"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"tandem/internal/term"
)

// What a stranger may send to a terminal.
const hostile = "evil\x1b]0;owned\a\x1b[2J\u009b31m\u202e\U000e0001\x7f\r\nforged \xff\xc0"

func TestWrappedLinesFitAndLoseNoLetter(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringOfN(rapid.SampledFrom([]rune("ab ö×  ")), 0, 200, -1).Draw(t, "text")
		room := rapid.IntRange(1, 30).Draw(t, "room")
		var lines []string
		for line := range term.Wrap(text, room) {
			if n := utf8.RuneCountInString(line); n == 0 || n > room || strings.Trim(line, " ") != line {
				t.Fatalf("line %q for a room of %d", line, room)
			}
			lines = append(lines, line)
		}
		letters := func(text string) string { return strings.ReplaceAll(text, " ", "") }
		if got, want := letters(strings.Join(lines, "")), letters(text); got != want {
			t.Fatalf("%q became %q", want, got)
		}
		for i := 1; i < len(lines); i++ {
			word, _, _ := strings.Cut(lines[i], " ")
			whole := strings.Contains(" "+text+" ", " "+word+" ") && strings.Contains(text, lines[i-1]+" "+word)
			if whole && utf8.RuneCountInString(lines[i-1]+" "+word) <= room {
				t.Fatalf("%q had room for %q", lines[i-1], word)
			}
		}
	})
}

func TestPageIsLaidOutInColumns(t *testing.T) {
	t.Parallel()
	p := term.Page{Width: 24}
	p.Factf("service", "%s", "http://a")
	p.Heading("Größe")
	p.Table([]int{-4, 6, 1}, [][]string{{"", "one", "two", "verdict"}, {"group"}, {"  ä", "1", "1,234,567", "same"},
		{"  b", "20", "", ""}})
	p.Paragraph("\x1b[32mok\x1b[0m  ", "it took more than 10 s\tin all "+strings.Repeat("x", 25))
	p.List("Nothing", nil)
	p.List("Points", []string{"first", "second"})
	want := `  service    http://a

Größe
─────
          one        two  verdict
group
  ä         1  1,234,567  same
  b        20
` + "\x1b[32mok\x1b[0m" + `  it took more than
    10 s�in all
    xxxxxxxxxxxxxxxxxxxx
    xxxxx

Points
──────
  • first
  • second
`
	if diff := cmp.Diff(want, p.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestCleanTextIsPrintableAndBounded(t *testing.T) {
	t.Parallel()
	hidden := func(r rune) bool { return !unicode.IsPrint(r) }
	for text, want := range map[string]string{
		"":                "",
		"größe ok":        "größe ok",
		"a\x1b[2Jb\n\xff": "a�[2Jb��",
		"1234567890":      "1234567890",
		"12345678901":     "1234567890…",
	} {
		if got := term.Clean(text, 10); got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
	if got := term.Clean(hostile, 100); strings.ContainsFunc(got, hidden) || !strings.Contains(got, "forged") {
		t.Errorf("%q", got)
	}
}

func TestRedactedURLShowsNoSecret(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"http://127.0.0.1:8000/a":                    "http://127.0.0.1:8000/a",
		"https://ada:hunter2@example.com/?k=hunter2": "https://ada:xxxxx@example.com/?redacted",
		"https://example.com/a#hunter2":              "https://example.com/a",
		"postgres://ada:hunter2@[::1/db":             "postgres:[redacted]",
		"http://ada:hunter2@host\n":                  "http:[redacted]",
	} {
		if got := term.RedactURL(text); got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
}

// full is a device without room.
type full struct{ writes int }

func (f *full) Write([]byte) (int, error) {
	f.writes++
	return 0, &fs.PathError{Op: "write", Path: "/dev/full", Err: syscall.ENOSPC}
}

func TestOutputEscapesWhatATerminalMightObey(t *testing.T) {
	t.Parallel()
	var text bytes.Buffer
	out := term.NewOutput("standard output", &text)
	if n, err := out.Write([]byte(hostile)); n != len(hostile) || err != nil || out.Err() != nil {
		t.Errorf("%d, %v, %v", n, err, out.Err())
	}
	want := `evil\u001b]0;owned\u0007\u001b[2J\u009b31m\u202e\udb40\udc01\u007f\u000d` + "\nforged ��"
	if got := text.String(); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if out.Columns() != 0 || out.Color() || term.IsTerminal(&text) {
		t.Error("a buffer is taken for a terminal")
	}
}

func TestOutputStopsAtTheFirstFailedWrite(t *testing.T) {
	t.Parallel()
	var device full
	out := term.NewOutput("standard output", &device)
	for range 2 {
		_, err := out.Write([]byte("text"))
		if !errors.Is(err, syscall.ENOSPC) || err.Error() != "write standard output: "+syscall.ENOSPC.Error() {
			t.Errorf("error %v", err)
		}
	}
	if !errors.Is(out.Err(), syscall.ENOSPC) || device.writes != 1 {
		t.Errorf("%v after %d writes", out.Err(), device.writes)
	}
}

func TestProgressInAPipeIsPlainLines(t *testing.T) {
	t.Parallel()
	var text bytes.Buffer
	p := term.NewProgress(term.NewOutput("standard output", &text), false)
	p.Show(term.Step{Name: "sync", Share: 0.5, Facts: []string{"5 of 10"}}) // none is due yet
	p.End("  sync  10 requests")
	p.Wipe()
	if got, want := text.String(), "  sync  10 requests\n"; got != want || p.Live() {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestProgressLineFitsItsTerminal(t *testing.T) {
	t.Parallel()
	p := term.NewProgress(term.NewOutput("standard output", nil), false)
	rapid.Check(t, func(t *rapid.T) {
		step := term.Step{
			Name:  rapid.StringMatching(`[a-zö]{0,30}`).Draw(t, "name"),
			Share: rapid.SampledFrom([]float64{-1, 0, 0.3, 1}).Draw(t, "share"),
			Facts: rapid.SliceOfN(rapid.StringMatching(`[a-z0-9µ ]{1,20}`), 0, 5).Draw(t, "facts"),
		}
		columns := rapid.IntRange(0, 120).Draw(t, "columns")
		line := p.Draw(step, columns)
		if n := utf8.RuneCountInString(line); n > columns {
			t.Fatalf("%d columns: %q", n, line)
		}
		if bar := strings.ContainsAny(line, "━─"); bar && step.Share < 0 {
			t.Fatalf("a bar of an unknown share: %q", line)
		}
	})
	const want = "  sync     ━━━━━━━━━━━━━━━━────────────────  5 of 10  1 errors"
	if got := p.Draw(term.Step{Name: "sync", Share: 0.5, Facts: []string{"5 of 10", "1 errors"}}, 79); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
