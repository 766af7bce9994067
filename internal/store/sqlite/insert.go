package sqlite

import "strings"

// insertRows is how many rows one statement adds when as many wait: a statement is begun and
// ended, and finds its place in every index, at a price of its own (docs/performance.md).
const insertRows = 16

// insertion collects the rows that a transaction adds to a table. They are in it once flush has
// been called, which run does before it commits.
type insertion struct {
	one    string // the statement for one row: ends with its parameters in parentheses
	values []any  // of the rows that wait, fewer than insertRows
}

// add takes over the values of one row. An error may be that of any row that waits.
func (in *insertion) add(t *tx, values ...any) error {
	in.values = append(in.values, values...)
	if len(in.values) < insertRows*len(values) {
		return nil
	}
	row := in.one[strings.LastIndexByte(in.one, '('):]
	_, err := t.exec(in.one+strings.Repeat(", "+row, insertRows-1), in.values...)
	in.values = in.values[:0]
	return err
}

// flush adds the rows that still wait.
func (in *insertion) flush(t *tx) error {
	columns := strings.Count(in.one, "?")
	for ; len(in.values) > 0; in.values = in.values[columns:] {
		if _, err := t.exec(in.one, in.values[:columns]...); err != nil {
			return err
		}
	}
	return nil
}
