//go:build !linux

package engine_test

import (
	"context"
	"encoding/json"

	"tandem/internal/engine"
)

// schedulingTask has nothing to report outside Linux.
func schedulingTask() engine.Task {
	return computing("scheduling", func(context.Context, json.RawMessage, int) (json.RawMessage, error) {
		return nil, nil
	})
}
