package server_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"tandem/internal/server"
)

// The answer to a submission is written by hand; it says what its documented type says.
func TestSubmissionIsRenderedAsDocumented(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.String()
		took := rapid.OneOf(rapid.Float64Range(0, 100), rapid.Float64Range(0, 1e-9), rapid.Just(0.0)).Draw(t, "seconds")
		at := time.Unix(0, rapid.Int64Range(0, 1<<60).Draw(t, "time")).UTC()
		ours, theirs, err := server.RenderSubmission(
			text.Draw(t, "first"), text.Draw(t, "last"), text.Draw(t, "message"), text.Draw(t, "id"), at, took,
			rapid.SampledFrom([]string{"confirmed", "pending", "failed"}).Draw(t, "external"))
		if err != nil {
			t.Fatal(err)
		}
		var got, want map[string]any
		if err := json.Unmarshal(ours, &got); err != nil {
			t.Fatalf("%s: %v", ours, err)
		}
		if err := json.Unmarshal(theirs, &want); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("-documented +written:\n%s", diff)
		}
	})
}
