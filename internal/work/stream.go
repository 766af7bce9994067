package work

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

const (
	maxProgress = 64 << 10 // bytes of a progress report; a longer one is not passed on
	maxDetail   = 4 << 10  // bytes of an error that a service or a command wrote
)

// errTooLarge says that a result is larger than it may be.
var errTooLarge = errors.New("result too large")

// readBounded reads to the end, or to the bound.
func readBounded(r io.Reader, most int64) ([]byte, error) {
	var body bytes.Buffer
	if n, err := body.ReadFrom(io.LimitReader(r, most+1)); err != nil || n > most {
		if err == nil {
			err = errTooLarge
		}
		return nil, err
	}
	return body.Bytes(), nil
}

// progress reports how far the work is. What is not JSON becomes a JSON string.
func (in Input) progress(report []byte) {
	if in.Progress == nil || len(report) > maxProgress {
		return
	}
	if !json.Valid(report) {
		quoted, err := json.Marshal(string(report))
		if err != nil || len(quoted) > maxProgress {
			return
		}
		report = quoted
	}
	in.Progress(report)
}

// lines calls each for every line of r that is not empty, without its end. A line over the bound is errTooLarge.
func lines(r io.Reader, most int64, each func(line []byte)) error {
	scanner := bufio.NewScanner(r)
	scanner.Buffer(nil, int(most)+2) // CR LF
	for scanner.Scan() {
		if line := scanner.Bytes(); len(line) > 0 {
			each(line)
		}
	}
	if errors.Is(scanner.Err(), bufio.ErrTooLong) {
		return errTooLarge
	}
	return scanner.Err()
}

// readLines reads NDJSON: each line is progress, and the last one is the result as well.
func readLines(r io.Reader, most int64, in Input) (Result, error) {
	var last []byte
	err := lines(r, most, func(line []byte) {
		last = append(last[:0], line...)
		in.progress(line)
	})
	return Done(last, ""), err
}

// readEvents reads Server-Sent Events: the data of each is progress, and that of the last one is the result as well,
// JSON if it is. An event named "error" says in its data why the work failed; what follows it is not read.
func readEvents(r io.Reader, most int64, in Input) (Result, error) {
	var last, data bytes.Buffer
	var name string
	var has, failed, over bool
	dispatch := func() {
		if has {
			in.progress(data.Bytes())
			failed = name == "error"
			last, data = data, last
		}
		data.Reset()
		name, has = "", false
	}
	scanner := bufio.NewScanner(r)
	scanner.Buffer(nil, int(most)+len("data: \r\n"))
	for scanner.Scan() && !failed && !over {
		line := strings.TrimPrefix(scanner.Text(), "\ufeff")
		field, value, _ := strings.Cut(line, ":") // a line that begins with a colon is a comment
		value = strings.TrimPrefix(value, " ")
		switch {
		case line == "":
			dispatch()
		case field == "event":
			name = value
		case field == "data":
			if has {
				data.WriteByte('\n')
			}
			data.WriteString(value)
			has = true
			over = int64(data.Len()) > most
		}
	}
	switch err := scanner.Err(); {
	case over, errors.Is(err, bufio.ErrTooLong):
		return Result{}, errTooLarge
	case err != nil:
		return Result{}, err
	}
	dispatch() // of a service that has left out the last empty line
	switch text := last.Bytes(); {
	case failed:
		return Failed(detail(text)), nil
	case len(text) == 0:
		return Done(nil, ""), nil
	default:
		return Done(text, guessed(text)), nil
	}
}

// guessed is the content type of a result that has none; "" for JSON.
func guessed(body []byte) string {
	switch {
	case json.Valid(body):
		return ""
	case utf8.Valid(body):
		return "text/plain; charset=utf-8"
	default:
		return "application/octet-stream"
	}
}

// detail is the beginning of what a service said, as text.
func detail(text []byte) string {
	return strings.TrimSpace(strings.ToValidUTF8(string(text[:min(len(text), maxDetail)]), "\ufffd"))
}

// bytesText is a number of bytes for people.
func bytesText(n int64) string {
	const kib, mib = 1 << 10, 1 << 20
	switch {
	case n >= mib && n%mib == 0:
		return fmt.Sprintf("%d MiB", n/mib)
	case n >= kib && n%kib == 0:
		return fmt.Sprintf("%d KiB", n/kib)
	default:
		return fmt.Sprintf("%d bytes", n)
	}
}
