package server

import (
	"encoding/json"
	"time"
)

// RenderSubmission writes the answer to a submission twice: as the server does, and as encoding/json does.
func RenderSubmission(first, last, message, id string, at time.Time, took float64, external string) (ours, theirs []byte, err error) {
	reply := submissionReply{
		FirstName: first, LastName: last, Message: message, SubmissionID: id, Timestamp: at, ProcessingTime: took, External: external,
	}
	if ours, err = appendSubmission(nil, &reply); err != nil {
		return nil, nil, err
	}
	theirs, err = json.Marshal(reply)
	return ours, theirs, err
}
