package load

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	fastjson "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"tandem"
)

// maxAnswer bounds the bytes read of an answer: the largest --max-data of a service, echoed, and some more.
const maxAnswer = 20 << 20

// recipe holds the common parts of a run's requests.
type recipe struct {
	sync, async *http.Request // without body
	front       []byte        // of the body, up to its data
	data        []byte        // "": a number, another in every request
	callback    string        // callback_url up to its key; needs no JSON escapes
}

func (s *service) recipe(cfg *Config, callback string) (*recipe, error) {
	request := func(path string) (*http.Request, error) {
		u, err := url.Parse(s.base + path)
		if err != nil {
			return nil, fmt.Errorf("make request: %w", err)
		}
		return &http.Request{
			Method: http.MethodPost, URL: u, Host: u.Host, Header: s.header,
			Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		}, nil
	}
	sync, err := request("/sync")
	if err != nil {
		return nil, err
	}
	async, err := request("/async")
	if err != nil {
		return nil, err
	}
	r := &recipe{sync: sync, async: async, data: cfg.Data, callback: callback, front: []byte(`{"complexity":`)}
	r.front = strconv.AppendInt(r.front, int64(cfg.Complexity), 10)
	if cfg.Task != "" {
		task, err := json.Marshal(cfg.Task)
		if err != nil {
			return nil, fmt.Errorf("encode task: %w", err)
		}
		r.front = append(append(r.front, `,"task":`...), task...)
	}
	r.front = append(r.front, `,"data":`...)
	return r, nil
}

// appendData appends the data of a request.
func (r *recipe) appendData(body []byte, number int64) []byte {
	if r.data != nil {
		return append(body, r.data...)
	}
	body = append(body, `{"number":`...)
	return append(strconv.AppendInt(body, number, 10), '}')
}

// body makes the body of a request; key is nil for a sync one.
func (r *recipe) body(number int64, key []byte) []byte {
	// The transport may still read a body when its answer is here already, so each is a new one.
	body := make([]byte, 0, len(r.front)+len(r.data)+len(r.callback)+len(key)+64)
	body = r.appendData(append(body, r.front...), number)
	if key != nil {
		body = append(append(body, `,"callback_url":"`...), r.callback...)
		body = append(append(body, key...), '"')
	}
	return append(body, '}')
}

// answer is the result of one request on the wire.
type answer struct {
	category   string // "": accepted
	id         string // request_id
	processing time.Duration
	workFailed bool          // the work failed, says the service
	refused    bool          // 429 or 503
	wait       time.Duration // pause requested by the service
	poll       time.Duration // of a 202: delay before the first poll
	detail     string        // of an error, for people
}

// caller sends requests one after the other. It reuses one context until a timeout ends it: one for each request would
// cost more than all else here.
type caller struct {
	transport *http.Transport
	timeout   time.Duration
	buffer    bytes.Buffer // the last answer

	parent context.Context //nolint:containedctx // of all contexts of this caller
	ctx    context.Context //nolint:containedctx // of its requests
	cancel context.CancelCauseFunc
	timer  *time.Timer // cancels ctx
}

func (s *service) newCaller(ctx context.Context, timeout time.Duration) *caller {
	c := &caller{transport: s.load, timeout: timeout, parent: ctx}
	c.renew()
	return c
}

// renew makes a fresh context.
func (c *caller) renew() {
	ctx, cancel := context.WithCancelCause(c.parent)
	c.ctx, c.cancel = ctx, cancel
	c.timer = time.AfterFunc(c.timeout, func() { cancel(context.DeadlineExceeded) })
	c.timer.Stop()
}

// close releases the context.
func (c *caller) close() {
	c.timer.Stop()
	c.cancel(context.Canceled)
}

// post sends a request and reads the whole answer.
func (c *caller) post(prototype *http.Request, body []byte, want int) answer {
	c.timer.Reset(c.timeout)
	a := c.exchange(prototype, body, want)
	if !c.timer.Stop() { // it has fired, now or just too late to matter
		c.close()
		c.renew()
	}
	return a
}

func (c *caller) exchange(prototype *http.Request, body []byte, want int) answer {
	req := prototype.WithContext(c.ctx)
	req.ContentLength = int64(len(body))
	req.Body = io.NopCloser(bytes.NewReader(body))
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	res, err := c.transport.RoundTrip(req)
	if err != nil {
		return c.failure("", err)
	}
	defer res.Body.Close()
	c.buffer.Reset()
	n, err := c.buffer.ReadFrom(io.LimitReader(res.Body, maxAnswer))
	switch {
	case err != nil:
		return c.failure("read answer: ", err)
	case n == maxAnswer:
		return answer{category: "bad_body", detail: fmt.Sprintf("an answer of %d bytes or more", maxAnswer)}
	}
	return judge(res, c.buffer.Bytes(), want)
}

// failure is the answer of a request without a whole answer.
func (c *caller) failure(doing string, err error) answer {
	var timeout interface{ Timeout() bool }
	category := "connect"
	if errors.Is(context.Cause(c.ctx), context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout() {
		category = "timeout"
		err = fmt.Errorf("no whole answer in %v", c.timeout)
	}
	return answer{category: category, detail: doing + err.Error()}
}

// judge reads an answer.
func judge(res *http.Response, body []byte, want int) answer {
	// 200 accepts as well as 202: other services use it.
	if res.StatusCode != want && (want != http.StatusAccepted || res.StatusCode != http.StatusOK) {
		return refusal(res, body)
	}
	var accepted struct {
		RequestID        string  `json:"request_id"`
		ProcessingTimeMS float64 `json:"processing_time_ms"`
	}
	err := fastjson.Unmarshal(body, &accepted, jsontext.AllowDuplicateNames(true))
	if err == nil && accepted.RequestID == "" {
		err = errors.New("it has no request_id")
	}
	if err != nil {
		return answer{category: "bad_body", detail: "answer violates the contract: " + err.Error()}
	}
	// The Retry-After of a 202 speaks of its result; of the next request only RateLimit does.
	return answer{
		id:         accepted.RequestID,
		processing: time.Duration(accepted.ProcessingTimeMS * float64(time.Millisecond)),
		wait:       exhausted(res.Header),
		poll:       retryAfter(res.Header, time.Now()),
	}
}

// refusal reads any other answer.
func refusal(res *http.Response, body []byte) answer {
	var problem struct {
		Code   tandem.Code `json:"code"`
		Detail string      `json:"detail"`
	}
	_ = json.Unmarshal(body, &problem) // not every answer on the way is the service's own
	a := answer{
		category:   "http_" + strconv.Itoa(res.StatusCode),
		refused:    res.StatusCode == http.StatusTooManyRequests || res.StatusCode == http.StatusServiceUnavailable,
		wait:       retryAfter(res.Header, time.Now()),
		workFailed: problem.Code == tandem.CodeTaskFailed || problem.Code == tandem.CodeTaskTimeout,
		detail:     string(problem.Code),
	}
	if problem.Detail != "" {
		a.detail += ": " + problem.Detail
	}
	return a
}
