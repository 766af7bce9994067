package submissions

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"slices"
	"time"

	"github.com/google/uuid"

	"tandem"
	"tandem/internal/engine"
	"tandem/internal/server"
	"tandem/internal/store"
)

// tag groups the routes in the OpenAPI document.
const tag = "Submissions"

// maxBatchID is longer than any batch id, in bytes.
const maxBatchID = 64

// The states of a submission's external call.
const (
	externalConfirmed = "confirmed" // it ended well
	externalPending   = "pending"   // it will be made, or made again
	externalFailed    = "failed"    // no further attempts
)

// personBody documents the body of POST /api/submit; [App.person] reads it.
type personBody struct {
	_         struct{} `json:"-" additionalProperties:"true"`
	FirstName string   `json:"firstName" doc:"1 to 50 characters as people see them, at most 500 code points, without control characters; space around it is taken away" example:"Ada"`
	LastName  string   `json:"lastName" doc:"As firstName" example:"Lovelace"`
}

// batchBody documents the body of POST /api/submit/batch; [App.people] reads it.
type batchBody struct {
	_           struct{}     `json:"-" additionalProperties:"true"`
	Submissions []personBody `json:"submissions" minItems:"1" maxItems:"10" doc:"All of them are taken, or none"`
}

// submissionReply is the answer to POST /api/submit, and an entry of the answer to a batch.
type submissionReply struct {
	FirstName      string    `json:"firstName" doc:"As it is kept: without space around it"`
	LastName       string    `json:"lastName" doc:"As it is kept: without space around it"`
	Message        string    `json:"message" doc:"For people" example:"Thank you, Ada Lovelace: your submission is saved and confirmed."`
	SubmissionID   string    `json:"submissionId" doc:"Its request in the history, and the key by which the external service knows repeats" example:"req_01938f7e2b6a7c5d8e9f0a1b2c3d4e5f"`
	Timestamp      time.Time `json:"timestamp" doc:"When it was accepted, UTC"`
	ProcessingTime float64   `json:"processingTime" minimum:"0" doc:"Seconds until it was saved and called, whichever took longer"`
	External       string    `json:"external" enum:"confirmed,pending,failed" doc:"What the external service said: it confirmed, the call is repeated for 24 hours, or there is no use in that"`
}

// batchReply is the answer to POST /api/submit/batch.
type batchReply struct {
	TotalProcessed int               `json:"total_processed" minimum:"1" maximum:"10" doc:"Submissions saved"`
	ProcessingTime float64           `json:"processing_time" minimum:"0" doc:"Seconds for all of them, side by side"`
	Results        []submissionReply `json:"results" doc:"In the order of the batch"`
	BatchID        string            `json:"batch_id" doc:"GET /api/submissions?batch_id= finds them again" example:"batch_01938f7e2b6a7c5d8e9f0a1b2c3d4e5f"`
}

// submissionEntry is a submission in a list.
type submissionEntry struct {
	SubmissionID   string        `json:"submissionId" doc:"Its request in the history"`
	FirstName      string        `json:"firstName" doc:"Without space around it"`
	LastName       string        `json:"lastName" doc:"Without space around it"`
	Timestamp      time.Time     `json:"timestamp" doc:"When it was accepted, UTC"`
	Status         tandem.Status `json:"status" enum:"pending,processing,completed,failed" doc:"Of its request"`
	External       string        `json:"external" enum:"confirmed,pending,failed" doc:"What has become of the external call"`
	ProcessingTime float64       `json:"processingTime" minimum:"0" doc:"Seconds in the external call; 0 until it ended"`
	BatchID        string        `json:"batch_id,omitempty" doc:"Of those that came in a batch"`

	// The same for the Reporting page of the FastAPI service, in its words.
	ReportedID        string    `json:"submission_id" doc:"submissionId, for clients of the FastAPI service"`
	ReportedFirst     string    `json:"first_name" doc:"firstName, for clients of the FastAPI service"`
	ReportedLast      string    `json:"last_name" doc:"lastName, for clients of the FastAPI service"`
	ReportedMessage   string    `json:"message" doc:"For people, as POST /api/submit would say it now"`
	ReportedTime      float64   `json:"processing_time" minimum:"0" doc:"processingTime, for clients of the FastAPI service"`
	ReportedCreatedAt time.Time `json:"created_at" doc:"timestamp, for clients of the FastAPI service"`
	LatestID          string    `json:"id,omitempty" doc:"submissionId; of latest_submission only"`
	LatestName        string    `json:"name,omitempty" doc:"Both names; of latest_submission only"`
}

// submissionList is the answer to GET /api/submissions.
type submissionList struct {
	Submissions []submissionEntry `json:"submissions" doc:"Newest first"`
	Count       int               `json:"count" minimum:"0" doc:"How many are listed"`
	Total       int64             `json:"total" minimum:"0" doc:"How many of those that the key may see there are: in the history, or in the batch"`
	Limit       int               `json:"limit" doc:"As asked for"`
	Offset      int               `json:"offset" doc:"As asked for"`
	HasMore     bool              `json:"has_more" doc:"Whether there are more after these"`
}

// submissionStatistics is the answer to GET /api/stats.
type submissionStatistics struct {
	Messages       int64            `json:"total_messages" minimum:"0" doc:"Submissions that the external service has confirmed, since the database was made"`
	Submissions    int64            `json:"total_submissions" minimum:"0" doc:"Accepted since the database was made"`
	Recent         int64            `json:"recent_submissions" minimum:"0" doc:"Accepted in the current hour (UTC) and the 23 before it"`
	Average        float64          `json:"avg_processing_time" minimum:"0" doc:"Seconds in the external call, of those that ended; 0 while none has"`
	Latest         *submissionEntry `json:"latest_submission" doc:"null: there is none in the history"`
	APIVersion     string           `json:"api_version" doc:"Of tandem"`
	Status         string           `json:"status" enum:"healthy,degraded" doc:"degraded: nothing new is accepted now"`
	DebugMode      bool             `json:"debug_mode" doc:"--debug"`
	LastSubmission *time.Time       `json:"last_submission" doc:"When the latest was accepted; null: there is none"`
	UptimeSeconds  float64          `json:"uptime_seconds" minimum:"0" doc:"Since the process started"`
	Log            logStatistics    `json:"submission_log" doc:"Of --submission-log"`
}

// logStatistics counts lines of the submission log since the start.
type logStatistics struct {
	Written int64 `json:"lines_written" minimum:"0" doc:"In the file, since the process started"`
	Dropped int64 `json:"lines_dropped" minimum:"0" doc:"Lost since the process started: the disk was too slow, or refused them"`
}

// API is the application's part of the HTTP API.
func (a *App) API() *server.Application {
	return &server.Application{
		Tag: tag, About: "A sample application on the same engine.", AnswerTime: 2 * MaxTimeout,
		Nullable: []string{"SubmissionStatistics.latest_submission"},
		Routes:   func(api *server.API) []server.Route { return (&handlers{App: a, api: api}).routes() },
		Counters: []server.Counter{
			{Name: "tandem_external_calls_total", Label: "outcome", Read: a.readCalls,
				Help: "Calls of the external service for submissions since the start, by outcome."},
			{Name: "tandem_submission_log_lines_total", Label: "outcome", Read: a.readLines,
				Help: "Lines of the submission log that were written, or dropped, since the start."},
			{Name: "tandem_submissions_accepted_total", Stored: true, Read: readAccepted,
				Help: "Submissions recorded since the database was made; they are sync requests as well."},
		},
	}
}

func (a *App) readCalls(_ *store.Stats, put func(int64, ...string)) {
	calls := a.Calls()
	calls[tandem.OutcomeDelivered] += 0 // shown while there is none as well
	for outcome, count := range calls {
		put(count, string(outcome))
	}
}

func (a *App) readLines(_ *store.Stats, put func(int64, ...string)) {
	lines, _ := a.lines.Stats()
	put(lines.Written, "written")
	put(lines.Dropped, "dropped")
}

func readAccepted(stats *store.Stats, put func(int64, ...string)) { put(stats.Counted.Accepted) }

// handlers answer the routes.
type handlers struct {
	*App
	api *server.API
}

// routes are the lines of the table.
func (h *handlers) routes() []server.Route {
	problems := append(slices.Clone(server.OrderProblems), tandem.CodeOverloaded)
	return []server.Route{
		{
			Method: http.MethodPost, Path: "/api/submit", Handle: h.handleSubmit, Access: server.ForCallers, Limited: true,
			ID: "submit", Tag: tag, Summary: "Save a submission and pass it on",
			Description: "It is saved, durably, while the external service is called. A call that goes wrong is repeated for " +
				"24 hours, with the same Idempotency-Key; the answer does not wait for that.",
			Body: personBody{}, Status: http.StatusOK, Reply: submissionReply{}, Problems: problems,
		},
		{
			Method: http.MethodPost, Path: "/api/submit/batch", Handle: h.handleBatch, Access: server.ForCallers, Limited: true,
			Counts: true,
			ID:     "submit-batch", Tag: tag, Summary: "Save up to 10 submissions and pass them on side by side",
			Description: "All are saved or none. Each entry counts towards the rate limit.",
			Body:        batchBody{}, Status: http.StatusOK, Reply: batchReply{}, Problems: problems,
		},
		{
			Method: http.MethodGet, Path: "/api/submissions", Handle: server.Show(h.handleSubmissions),
			Access: server.ForReaders, Limited: true,
			ID: "list-submissions", Tag: tag, Summary: "List submissions, newest first",
			Description: "Unknown parameters are refused.",
			Params:      append(server.PageParams(), server.TextParam("batch_id", "Those that came in one batch")),
			Status:      http.StatusOK, Reply: submissionList{},
			Problems: []tandem.Code{tandem.CodeValidation, tandem.CodeStoreUnavailable, tandem.CodeOverloaded},
		},
		{
			Method: http.MethodGet, Path: "/api/stats", Handle: server.Conditional(h.handleStats, h.statsTag),
			Access: server.ForAdmins, Limited: true, Tagged: true,
			ID: "submission-stats", Tag: tag, Summary: "Show figures about submissions",
			Description: "The ETag covers every figure but uptime_seconds, and the start of the process.",
			Status:      http.StatusOK, Reply: submissionStatistics{}, Problems: []tandem.Code{tandem.CodeStoreUnavailable},
		},
		{
			Method: http.MethodGet, Path: "/health", Handle: server.Show(h.api.Health), Access: server.ForEverybody,
			ID: "health", Tag: tag, Summary: "Say that the service answers: the same as /healthz", Status: http.StatusOK,
			Reply: server.Health{},
		},
	}
}

// handleSubmit takes one submission.
func (h *handlers) handleSubmit(w http.ResponseWriter, r *http.Request) error {
	p, err := h.person(w, r)
	if err != nil {
		return err
	}
	replies, err := h.save(r, "", []person{p})
	if err != nil {
		return err
	}
	return server.WriteReply(w, r, replies[0])
}

// handleBatch takes several submissions, all or none. Each counts towards the rate limit. Their number is known only
// after reading, so a caller with nothing left is refused first.
func (h *handlers) handleBatch(w http.ResponseWriter, r *http.Request) error {
	if err := h.api.Allow(w, r, 0); err != nil {
		return err
	}
	people, err := h.people(w, r)
	if most := h.api.MaxPosts; most > 0 && len(people) > most {
		err = server.Invalid(tandem.FieldError{
			Location: "body.submissions", Value: len(people),
			Message: fmt.Sprintf("must have at most %d entries: --rate-limit never lets more through together", most),
		})
		people = nil
	}
	if refused := h.api.Allow(w, r, max(len(people), 1)); refused != nil { // an invalid body counts as one
		return refused
	}
	if err != nil {
		return err
	}
	id, err := newBatchID()
	if err != nil {
		return err
	}
	started := time.Now()
	replies, err := h.save(r, id, people)
	if err != nil {
		return err
	}
	return server.WriteReply(w, r, batchReply{len(replies), roundSeconds(time.Since(started).Seconds()), replies, id})
}

// save saves submissions and passes them on, side by side.
func (h *handlers) save(r *http.Request, batchID string, people []person) ([]submissionReply, error) {
	data := make([]json.RawMessage, len(people))
	for i, p := range people {
		var err error
		if data[i], err = p.data(); err != nil {
			return nil, err
		}
	}
	keyID, owner := h.api.Caller(r)
	done, err := h.submit(h.api.Engine, batch{id: batchID, keyID: keyID, owner: owner, data: data})
	if err != nil {
		return nil, err
	}
	replies := make([]submissionReply, 0, len(done))
	for i, p := range people {
		replies = append(replies, replyTo(p, &done[i]))
	}
	return replies, nil
}

func replyTo(p person, done *engine.Run) submissionReply {
	reply := submissionReply{
		FirstName: p.FirstName, LastName: p.LastName, SubmissionID: done.Request.ID, Timestamp: done.Request.CreatedAt,
		ProcessingTime: roundSeconds(done.Took.Seconds()), External: externalOf(done.Request.Status),
	}
	reply.Message = p.thanks(reply.External)
	return reply
}

// thanks is the message for a submission, given the state of its external call.
func (p person) thanks(external string) string {
	return "Thank you, " + p.FirstName + " " + p.LastName + ": your submission is saved" + map[string]string{
		externalConfirmed: " and confirmed.",
		externalPending:   "; its confirmation will follow.",
		externalFailed:    ", but the external service does not take it.",
	}[external]
}

// roundSeconds rounds to microseconds, the precision of the measurement.
func roundSeconds(s float64) float64 { return math.Round(s*1e6) / 1e6 }

// externalOf translates the status of a submission into the state of its call.
func externalOf(status tandem.Status) string {
	switch status {
	case tandem.StatusCompleted:
		return externalConfirmed
	case tandem.StatusFailed:
		return externalFailed
	default:
		return externalPending
	}
}

func newBatchID() (string, error) {
	raw, err := uuid.NewV7()
	if err != nil {
		return "", fmt.Errorf("make a batch id: %w", err)
	}
	return "batch_" + hex.EncodeToString(raw[:]), nil
}

// batchFilter is the parameter batch_id of GET /api/submissions.
func batchFilter(f *store.Filter, v string) string {
	f.Batch = v
	if v == "" || len(v) > maxBatchID {
		return "must be the batch_id of an answer"
	}
	return ""
}

// handleSubmissions lists submissions: all of them, or a batch.
func (h *handlers) handleSubmissions(r *http.Request) (submissionList, error) {
	asked, err := server.ParsePage(r.URL.RawQuery, map[string]func(*store.Filter, string) string{"batch_id": batchFilter})
	if err != nil {
		return submissionList{}, err
	}
	asked.Key = server.Owned(r)
	filter, list := asked, submissionList{Limit: asked.Limit, Offset: asked.Offset}
	if filter.Batch != "" { // it is small: all of it is read, and counted
		filter.Limit, filter.Offset = maxBatch, 0
	} else {
		filter.Task = Task
	}
	page, err := h.api.Store.Requests(r.Context(), filter)
	if err != nil {
		return submissionList{}, err
	}
	found := page.Requests
	list.HasMore, list.Total = page.Next != "", page.Total
	if filter.Batch != "" {
		list.Total = int64(len(found))
		found = found[min(asked.Offset, len(found)):]
		list.HasMore = len(found) > asked.Limit
		found = found[:min(asked.Limit, len(found))]
	}
	list.Count = len(found)
	list.Submissions = make([]submissionEntry, len(found))
	for i := range found {
		if list.Submissions[i], err = entryOf(&found[i]); err != nil {
			return submissionList{}, err
		}
	}
	return list, nil
}

func entryOf(r *tandem.Request) (submissionEntry, error) {
	var p person
	if err := json.Unmarshal(r.Data, &p); err != nil {
		return submissionEntry{}, fmt.Errorf("read submission %s: %w", r.ID, err)
	}
	external, took := externalOf(r.Status), roundSeconds(r.ProcessingTimeMS/1000)
	return submissionEntry{
		SubmissionID: r.ID, FirstName: p.FirstName, LastName: p.LastName, Timestamp: r.CreatedAt, Status: r.Status,
		External: external, ProcessingTime: took, BatchID: r.BatchID,

		ReportedID: r.ID, ReportedFirst: p.FirstName, ReportedLast: p.LastName, ReportedMessage: p.thanks(external),
		ReportedTime: took, ReportedCreatedAt: r.CreatedAt,
	}, nil
}

// handleStats gathers the figures. It costs the same however many there are.
func (h *handlers) handleStats(r *http.Request) (submissionStatistics, error) {
	stats, err := h.api.Store.Stats(r.Context())
	if err != nil {
		return submissionStatistics{}, err
	}
	page, err := h.api.Store.Requests(r.Context(), store.Filter{Task: Task, Limit: 1})
	if err != nil {
		return submissionStatistics{}, err
	}
	lines, _ := h.lines.Stats() // zeros while there is no log
	figures := submissionStatistics{
		Messages:      stats.Counted.Ended,
		Submissions:   stats.Counted.Accepted,
		Recent:        stats.Counted.Recent,
		Average:       average(stats.Counted.Work),
		APIVersion:    tandem.Version,
		Status:        "healthy",
		DebugMode:     h.api.Debug,
		UptimeSeconds: time.Since(h.api.Started).Round(time.Millisecond).Seconds(),
		Log:           logStatistics(lines),
	}
	if stats.Unavailable != nil || h.api.Engine.Draining() {
		figures.Status = "degraded"
	}
	if len(page.Requests) > 0 {
		latest, err := entryOf(&page.Requests[0])
		if err != nil {
			return submissionStatistics{}, err
		}
		latest.LatestID, latest.LatestName = latest.SubmissionID, latest.FirstName+" "+latest.LastName
		figures.Latest, figures.LastSubmission = &latest, &latest.Timestamp
	}
	return figures, nil
}

// statsTag is the weak tag of /api/stats. Like the tag of /stats it covers everything but the uptime, and the start of
// the process.
func (h *handlers) statsTag(reply submissionStatistics, _ []byte) (string, error) {
	reply.UptimeSeconds = 0
	return h.api.WeakTag(reply)
}

// average is in seconds; 0 of nothing.
func average(w store.WorkTime) float64 {
	if w.Count == 0 {
		return 0
	}
	return roundSeconds(w.Total.Seconds() / float64(w.Count))
}
