package engine_test

import (
	"encoding/json"
	"testing"

	"tandem/internal/engine"
)

// BenchmarkCompute is one operation of the task per op: about 25 ms of one core.
func BenchmarkCompute(b *testing.B) {
	for b.Loop() {
		if _, err := engine.RunCompute(b.Context(), json.RawMessage(`{"a":1}`), 1); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(b.Elapsed().Seconds()*1000/3/float64(b.N), "ms/operation")
}
