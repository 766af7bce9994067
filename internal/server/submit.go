package server

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"tandem"
)

// syncReply is the answer to POST /sync; appendSync writes it.
type syncReply struct {
	RequestID        string         `json:"request_id" doc:"Its entry in the history" example:"req_01938f7e2b6a7c5d8e9f0a1b2c3d4e5f"`
	Result           map[string]any `json:"result" doc:"What the task returned"`
	ProcessingTimeMS float64        `json:"processing_time_ms" minimum:"0" doc:"Time in the task, milliseconds"`
	Timestamp        time.Time      `json:"timestamp" doc:"When the work ended, UTC"`
}

// asyncReply is the answer to POST /async; appendAsync writes it.
type asyncReply struct {
	RequestID string `json:"request_id" doc:"Its entry in the history, and the webhook-id of its callback" example:"req_01938f7e2b6a7c5d8e9f0a1b2c3d4e5f"`
	Status    string `json:"status" enum:"accepted"`
	Message   string `json:"message" doc:"For people" example:"Request accepted for processing. Callback will be sent when complete."`
}

// handleSync does the work while the caller waits.
func (s *server) handleSync(w http.ResponseWriter, r *http.Request) error {
	order, err := s.bodies.order(w, r, false)
	if err != nil {
		return err
	}
	order.KeyID, order.Owner = keyOf(r), s.ownerOf(r)
	done, err := s.cfg.Engine.Do(r.Context(), order)
	if err != nil {
		return err
	}
	body := appendSync(make([]byte, 0, 160+len(done.Result)), &done)
	holdResult(w, r, len(body))
	writeJSON(w, http.StatusOK, body)
	return nil
}

// handleAsync accepts the work; when it answers, the order is on disk. This is
// the hot path: nothing in it reflects, and the answer is one allocation.
func (s *server) handleAsync(w http.ResponseWriter, r *http.Request) error {
	order, err := s.bodies.order(w, r, true)
	if err != nil {
		return err
	}
	order.KeyID, order.Owner = keyOf(r), s.ownerOf(r)
	// A half-closed connection gets its 202.
	accepted, err := s.cfg.Engine.Submit(context.WithoutCancel(r.Context()), order)
	if err != nil {
		return err
	}
	header := w.Header()
	header["Location"] = []string{s.prefix(r) + "/requests/" + accepted.ID}
	header["Retry-After"] = retryAfterAccept
	writeJSON(w, http.StatusAccepted, appendAsync(make([]byte, 0, 192), accepted.ID))
	return nil
}

// Header values shared by many answers and never written to.
var (
	retryAfterAccept = []string{"1"}
	contentTypeJSON  = []string{"application/json"}
	noStore          = []string{"no-store"}
)

// appendSync writes a [syncReply]. The result is JSON already and ids need no
// escaping.
func appendSync(b []byte, done *tandem.Request) []byte {
	b = append(b, `{"request_id":"`...)
	b = append(b, done.ID...)
	b = append(b, `","result":`...)
	if len(done.Result) == 0 {
		b = append(b, "null"...)
	} else {
		b = append(b, done.Result...)
	}
	b = append(b, `,"processing_time_ms":`...)
	b = strconv.AppendFloat(b, done.ProcessingTimeMS, 'f', -1, 64)
	b = append(b, `,"timestamp":"`...)
	b = done.CompletedAt.AppendFormat(b, time.RFC3339Nano)
	return append(b, "\"}\n"...)
}

// appendAsync writes an [asyncReply].
func appendAsync(b []byte, id string) []byte {
	b = append(b, `{"request_id":"`...)
	b = append(b, id...)
	return append(b, `","status":"accepted",`+
		`"message":"Request accepted for processing. Callback will be sent when complete."}`+"\n"...)
}

// writeJSON writes a body that is JSON already. Answers are about one moment
// and one caller, so nobody may keep them.
func writeJSON(w http.ResponseWriter, status int, body []byte) { writeBody(w, status, noStore, body) }

// writeBody is writeJSON with another word on who may keep the answer.
func writeBody(w http.ResponseWriter, status int, keep []string, body []byte) {
	header := w.Header()
	header["Content-Type"] = contentTypeJSON
	header["Cache-Control"] = keep
	w.WriteHeader(status)
	_, _ = w.Write(body) // fails only when the caller has gone
}
