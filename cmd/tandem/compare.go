package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"tandem/internal/load"
)

// compareCommand sets reports of load against each other.
type compareCommand struct {
	Reports       []string `arg:"" name:"report" help:"Reports written with tandem load --output, the base first. Names that differ only in a number at the end are repeats of one run: base-1.json base-2.json new-1.json new-2.json."`
	MaxRegression string   `placeholder:"10%" help:"Exit 3 when a figure is worse by more than this, in the best case of the repeats' spread."`

	bound float64 // MaxRegression, read; negative: none
}

// Validate reads the bound; kong calls it.
func (c *compareCommand) Validate() error {
	if len(c.Reports) < 2 {
		return badArgument("tandem load --output FILE writes one", "want two reports or more")
	}
	c.bound = -1
	if c.MaxRegression == "" {
		return nil
	}
	percent, err := parseNumber(strings.TrimSuffix(c.MaxRegression, "%"))
	if err != nil || !strings.HasSuffix(c.MaxRegression, "%") || !(percent >= 0 && percent <= 10_000) {
		return badArgument("", "--max-regression %s: want a percentage, such as 10%%", c.MaxRegression)
	}
	c.bound = percent / 100
	return nil
}

// Run prints the comparison. Exit code 3 says that something got worse than allowed.
func (c *compareCommand) Run(_ context.Context, t *terminal) error {
	var reports []load.NamedReport
	for _, name := range c.Reports {
		report, err := readReport(name)
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		reports = append(reports, load.NamedReport{Name: name, Report: report})
	}
	compared, err := load.CompareReports(reports, c.bound)
	if err != nil {
		return err
	}
	if err := load.WriteComparisons(t.out, compared); err != nil {
		return err
	}
	if worse := compared.Regressions(); len(worse) > 0 {
		return &failure{code: exitCheckFailed,
			err: fmt.Errorf("%s worse by more than %s", plural(len(worse), "figure"), c.MaxRegression)}
	}
	return nil
}

// readReport reads one file.
func readReport(name string) (*load.Report, error) {
	file, err := os.Open(name)
	if err != nil {
		if broken, ok := errors.AsType[*os.PathError](err); ok {
			err = broken.Err // the rest repeats the name
		}
		return nil, err
	}
	defer file.Close() //nolint:errcheck // it was only read
	return load.DecodeReport(file)
}
