package tandem_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"tandem"
)

func TestErrorf(t *testing.T) {
	t.Parallel()
	err := tandem.Errorf(tandem.CodeNotFound, "no request %q", "req_1")
	if err.Code != tandem.CodeNotFound || err.Message != `no request "req_1"` || err.Err != nil {
		t.Errorf("code %s, message %q, cause %v", err.Code, err.Message, err.Err)
	}
	if got, want := err.Error(), `NOT_FOUND: no request "req_1"`; got != want {
		t.Errorf("for the log %q, want %q", got, want)
	}

	caused := tandem.Errorf(tandem.CodeInvalidJSON, "read the body: %w", io.ErrUnexpectedEOF)
	if !errors.Is(caused, io.ErrUnexpectedEOF) || caused.Message != "read the body: unexpected EOF" {
		t.Errorf("message %q, cause %v", caused.Message, caused.Err)
	}
}

// TestErrorCause: the cause is in the text for the log and in the chain, never in the message.
func TestErrorCause(t *testing.T) {
	t.Parallel()
	cause := errors.New("disk I/O error")
	err := &tandem.Error{Code: tandem.CodeStoreUnavailable, Message: "the database takes no writes", Err: cause}
	if got, want := err.Error(), "STORE_UNAVAILABLE: the database takes no writes (disk I/O error)"; got != want {
		t.Errorf("for the log %q, want %q", got, want)
	}
	if !errors.Is(err, cause) {
		t.Error("the cause is not in the chain")
	}
}

func TestCodeOf(t *testing.T) {
	t.Parallel()
	notFound := tandem.Errorf(tandem.CodeNotFound, "gone")
	for _, test := range []struct {
		err  error
		want tandem.Code
	}{
		{nil, ""},
		{notFound, tandem.CodeNotFound},
		{fmt.Errorf("load the request: %w", notFound), tandem.CodeNotFound},
		{errors.Join(io.EOF, notFound), tandem.CodeNotFound},
		{&tandem.Error{Code: tandem.CodeDraining, Err: notFound}, tandem.CodeDraining}, // the first in the chain
		{io.EOF, tandem.CodeInternal},
		{context.Canceled, tandem.CodeInternal},
	} {
		if got := tandem.CodeOf(test.err); got != test.want {
			t.Errorf("code of %v: %q, want %q", test.err, got, test.want)
		}
	}
}
