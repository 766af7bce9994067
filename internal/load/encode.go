package load

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// maxReport bounds what DecodeReport reads: a report of an hour in three phases has about 3 MB.
const maxReport = 64 << 20

// Encode writes the report as JSON, in the form of api/load-report.schema.json:
// lists and maps that are empty are written as such.
func (r *Report) Encode(w io.Writer) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(r.filled()); err != nil {
		return fmt.Errorf("encode report: %w", err)
	}
	return nil
}

// filled returns the report with its schema named and nothing nil that is written as a list or map.
func (r *Report) filled() *Report {
	full := *r
	full.Schema = SchemaVersion
	full.InvalidReasons = append([]string{}, r.InvalidReasons...)
	full.Warnings = append([]string{}, r.Warnings...)
	full.Thresholds = append([]ThresholdResult{}, r.Thresholds...)
	for i := range full.Thresholds {
		full.Thresholds[i].Unit, _ = metricUnit(full.Thresholds[i].Metric)
	}
	full.Insights = append([]Insight{}, r.Insights...)
	for i := range full.Insights {
		full.Insights[i].Figures = append([]string{}, full.Insights[i].Figures...)
	}
	full.Phases = append([]Phase{}, r.Phases...)
	for i := range full.Phases {
		phase := &full.Phases[i]
		phase.Sync, phase.Async = phase.Sync.filled(), phase.Async.filled()
		if phase.Callbacks != nil {
			callbacks := *phase.Callbacks
			callbacks.MissingByStatus = notNil(callbacks.MissingByStatus)
			phase.Callbacks = &callbacks
		}
	}
	return &full
}

func (s *Side) filled() *Side {
	if s == nil {
		return nil
	}
	full := *s
	full.Errors = notNil(s.Errors)
	full.Series = append([]Step{}, s.Series...)
	return &full
}

func notNil(m map[string]int64) map[string]int64 {
	if m == nil {
		return map[string]int64{}
	}
	return maps.Clone(m)
}

// DecodeReport reads what Encode has written. Members that it does not know are
// skipped, because a later version of the same schema may have more of them.
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
