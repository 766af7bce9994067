// Package term writes for people at a terminal: tables and wrapped text ([Page]), progress ([Progress]), and safe text
// of strangers ([Output], [Escape], [Clean], [RedactURL]).
package term

import (
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Clean makes the text of a stranger safe to show: printable, on one line, at most so many characters long.
func Clean(text string, most int) string {
	var clean strings.Builder
	for _, r := range text {
		if most--; most < 0 {
			clean.WriteRune('…')
			break
		}
		if !unicode.IsPrint(r) {
			r = utf8.RuneError
		}
		clean.WriteRune(r)
	}
	return clean.String()
}

// RedactURL hides the password, the query and the fragment of a URL.
func RedactURL(text string) string {
	address, err := url.Parse(text)
	if err != nil {
		scheme, _, _ := strings.Cut(text, ":")
		return scheme + ":[redacted]"
	}
	if address.RawQuery != "" {
		address.RawQuery = "redacted"
	}
	address.Fragment, address.RawFragment = "", ""
	return address.Redacted()
}

// Typos counts the keystrokes between two names (Levenshtein).
func Typos(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
