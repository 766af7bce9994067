package work_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"tandem/internal/work"
)

func TestRun(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		run     func() work.Result
		state   work.State
		body    string
		content string
		message string // the beginning
	}{
		"done": {func() work.Result { return work.Done([]byte(`{"a":1}`), "") }, work.StateDone, `{"a":1}`, "",
			""},
		"nothing": {func() work.Result { return work.Done(nil, "") }, work.StateDone, "null", "", ""},
		"JSON by its type": {func() work.Result { return work.Done([]byte(`[]`), "Application/JSON; charset=utf-8") },
			work.StateDone, "[]", "", ""},
		"broken": {func() work.Result { return work.Done([]byte(`{"half":`), "") }, work.StateFailed, "", "",
			"the task returned something that is not JSON"},
		"broken by its type": {func() work.Result { return work.Done([]byte(`{`), "application/json") }, work.StateFailed,
			"", "", "the task returned something that is not JSON"},
		"text": {func() work.Result { return work.Done([]byte(`{"half":`), "text/plain") }, work.StateDone,
			`{"half":`, "text/plain", ""},
		"no text": {func() work.Result { return work.Done(nil, "text/plain") }, work.StateDone, "", "text/plain",
			""},
		"failed": {func() work.Result { return work.Failed("on fire") }, work.StateFailed, "", "", "on fire"},
		"again": {func() work.Result { return work.Again("busy", time.Second, true) }, work.StateAgain, "", "",
			"busy"},
		"held":      {func() work.Result { return work.Held("open", time.Now()) }, work.StateHeld, "", "", "open"},
		"unknown":   {func() work.Result { return work.Unknown("cut") }, work.StateUnknown, "", "", "cut"},
		"no result": {func() work.Result { return work.Result{} }, work.StateFailed, "", "", ""},
		"panic": {func() work.Result { panic("exploded") }, work.StatePanicked, "", "",
			"panic: exploded\ngoroutine"},
	} {
		task := work.Task{Name: "test", Class: work.IO,
			Run: func(context.Context, work.Input) work.Result { return tt.run() }}
		got := work.Run(t.Context(), task, work.Input{})
		body, content := got.Body()
		if got.State() != tt.state || string(body) != tt.body || content != tt.content ||
			!strings.HasPrefix(got.Message(), tt.message) {
			t.Errorf("%s: state %d, %q %q, %q", name, got.State(), body, content, got.Message())
		}
	}
}

func TestTaskValidate(t *testing.T) {
	t.Parallel()
	run := func(context.Context, work.Input) work.Result { return work.Result{} }
	for name, tt := range map[string]struct {
		task work.Task
		want string // part of the error; "": none
	}{
		"good":     {work.Task{Name: "x", Class: work.IO, Run: run}, ""},
		"no name":  {work.Task{Class: work.IO, Run: run}, "name"},
		"capitals": {work.Task{Name: "Do", Class: work.IO, Run: run}, "lower case"},
		"no class": {work.Task{Name: "x", Run: run}, "class"},
		"no Run":   {work.Task{Name: "x", Class: work.CPU}, "Run"},
		"timeout":  {work.Task{Name: "x", Class: work.CPU, Run: run, Timeout: -1}, "timeout"},
		"retry":    {work.Task{Name: "x", Class: work.CPU, Run: run, Retry: work.Retry{Attempts: 2}}, "retry: backoff"},
		"a policy of it": {work.Task{Name: "x", Class: work.CPU, Run: run,
			Retry: work.Retry{Attempts: 2, Backoff: 1, MaxAge: 1}}, ""},
	} {
		err := tt.task.Validate()
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
	for _, task := range work.Builtin() {
		if err := task.Validate(); err != nil || !task.Complexity {
			t.Errorf("%s: %v, complexity %v", task.Name, err, task.Complexity)
		}
	}
}
