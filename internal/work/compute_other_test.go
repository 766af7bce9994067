//go:build !linux

package work_test

import (
	"context"
	"encoding/json"

	"tandem/internal/work"
)

// schedulingTask has nothing to report outside Linux.
func schedulingTask() work.Task {
	return computing("scheduling", func(context.Context, json.RawMessage, int) (json.RawMessage, error) {
		return nil, nil
	})
}
