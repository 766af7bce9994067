package load

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/HdrHistogram/hdrhistogram-go"
	fastjson "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// maxReport bounds what DecodeReport reads: a report of an hour in three phases has about 3 MB.
const maxReport = 64 << 20

// Encode writes the report as JSON, in the form of api/load-report.schema.json.
func (r *Report) Encode(w io.Writer) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(r); err != nil {
		return fmt.Errorf("encode report: %w", err)
	}
	return nil
}

// MarshalJSON writes nil lists and maps as empty ones, and sets the schema.
func (r *Report) MarshalJSON() ([]byte, error) {
	type plain Report // without this method
	full := plain(*r)
	full.Schema = SchemaVersion
	full.Thresholds = slices.Clone(r.Thresholds)
	for i := range full.Thresholds {
		full.Thresholds[i].Unit, _ = metricUnit(full.Thresholds[i].Metric)
	}
	return fastjson.Marshal(&full, fastjson.Deterministic(true), jsontext.AllowInvalidUTF8(true))
}

// DecodeReport reads the output of Encode. Unknown members are skipped: a later version of the same schema may have
// more.
func DecodeReport(rd io.Reader) (*Report, error) {
	limited := &io.LimitedReader{R: rd, N: maxReport + 1}
	decoder := json.NewDecoder(limited)
	var report Report
	if err := decoder.Decode(&report); err != nil {
		if limited.N <= 0 {
			return nil, fmt.Errorf("decode report: longer than %d bytes", maxReport)
		}
		return nil, fmt.Errorf("decode report: not a report in JSON: %w", err)
	}
	if report.Schema != SchemaVersion {
		return nil, fmt.Errorf("decode report: its schema is %.100q, this program reads %q", report.Schema, SchemaVersion)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("decode report: something follows the report")
	}
	return &report, nil
}

// histogram decodes the whole distribution, in microseconds.
func (l *Latency) histogram() (*hdrhistogram.Histogram, error) {
	histogram, err := hdrhistogram.Decode([]byte(l.HDR))
	if err != nil {
		return nil, fmt.Errorf("decode histogram: %w", err)
	}
	return histogram, nil
}
