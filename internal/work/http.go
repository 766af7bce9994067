package work

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"tandem"
	"tandem/internal/egress"
)

// Bounds of the result of a service or a command.
const (
	DefaultMaxResult = 1 << 20
	MaxMaxResult     = 64 << 20
)

const (
	// serviceIdle is how long a connection to a service is kept without work: less than servers keep theirs (2 s and
	// more), because a service that closes a connection while a request is on its way leaves an unknown outcome.
	serviceIdle = time.Second

	serviceConcurrency = 1 << 20 // the slots of a task bound its calls, not the permits of its destination
	maxContentType     = 255     // bytes
)

// HTTP is work that an HTTP service of the operator does: the data is sent to a URL, and the answer says what came of
// it. docs/decisions/0016-services-as-work.md has the table. The service may have any address but those of metadata
// services, its redirects are not followed, and no proxy is used.
type HTTP struct {
	URL       string
	Headers   http.Header   // of every call, beside those that tandem adds
	CA        string        // PEM of the authorities that sign the service's certificate; "": the system's
	Cert, Key string        // PEM of our certificate, for a service that asks for one; "": none
	MaxResult int64         // bytes; 0: DefaultMaxResult
	Secret    tandem.Secret // signs the calls; zero: they are not signed
	Resolver  *net.Resolver // looks up the host; nil: that of package egress
	Log       *slog.Logger  // failures and recoveries of the service; nil: slog.Default
}

// service is an HTTP whose fields have been read.
type service struct {
	HTTP
	url    *url.URL
	site   egress.Site
	client *egress.Client
}

// Task makes a task of a service. It returns an error when a field is wrong.
func (h HTTP) Task(name string) (Task, error) {
	s, err := h.service()
	if err != nil {
		return Task{}, err
	}
	return Task{
		Name: name, Class: IO,
		Run: func(ctx context.Context, in Input) Result {
			return s.call(ctx, in, http.MethodPost, s.URL)
		},
		Poll: func(ctx context.Context, in Input, location string) Result {
			return s.ask(ctx, in, http.MethodGet, location)
		},
		Withdraw: func(ctx context.Context, in Input, location string) Result {
			return s.ask(ctx, in, http.MethodDelete, location)
		},
	}, nil
}

// ask makes an exchange about work that the service has taken. It may be repeated.
func (s *service) ask(ctx context.Context, in Input, method, location string) Result {
	if !s.has(location) {
		return Failed("the work was taken at another scheme, host or port than the task's")
	}
	in.Data = nil
	result := s.call(ctx, in, method, location)
	if result.state == StateUnknown {
		result.state, result.counted = StateAgain, false
	}
	return result
}

func (h HTTP) service() (*service, error) {
	h.MaxResult = cmp.Or(h.MaxResult, DefaultMaxResult)
	if h.MaxResult < 0 || h.MaxResult > MaxMaxResult {
		return nil, fmt.Errorf("max_result %d: must be between 1 and %d bytes", h.MaxResult, MaxMaxResult)
	}
	for name, values := range h.Headers {
		if !httpguts.ValidHeaderFieldName(name) || slices.ContainsFunc(values, invalidValue) {
			return nil, fmt.Errorf("header %q: not a header of HTTP", name) // its value may be a secret
		}
		if reserved(http.CanonicalHeaderKey(name)) {
			return nil, fmt.Errorf("header %q: tandem sets it", name)
		}
	}
	cfg := egress.Config{
		Policy:          egress.Policy{AllowPrivate: true, AnyPort: true},
		HostConcurrency: serviceConcurrency, IdleTimeout: serviceIdle, Resolver: h.Resolver, Log: h.Log,
	}
	if h.CA != "" {
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM([]byte(h.CA)) {
			return nil, errors.New("ca: no certificate in PEM")
		}
	}
	if h.Cert != "" || h.Key != "" {
		pair, err := tls.X509KeyPair([]byte(h.Cert), []byte(h.Key))
		if err != nil {
			return nil, fmt.Errorf("cert and key: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	client, err := egress.New(cfg)
	if err != nil {
		return nil, err
	}
	receiver, err := client.Receiver(h.URL, "")
	if err != nil {
		return nil, fmt.Errorf("url: %w", errors.Unwrap(err))
	}
	target, err := url.Parse(h.URL)
	if err != nil {
		return nil, fmt.Errorf("url: %w", err)
	}
	return &service{HTTP: h, url: target, site: receiver.Site, client: client}, nil
}

func invalidValue(value string) bool { return !httpguts.ValidHeaderFieldValue(value) }

// reserved reports whether a header in its canonical form is not the operator's to set.
func reserved(name string) bool {
	switch name {
	case "Accept-Encoding", "Connection", "Content-Length", "Content-Type", "Expect", "Host", "Idempotency-Key",
		"Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Traceparent", "Tracestate":
		return true
	}
	return slices.ContainsFunc([]string{"Tandem-", "Webhook-", "Proxy-"}, func(prefix string) bool {
		return strings.HasPrefix(name, prefix)
	})
}

// header is that of one call. Nothing of it comes from a caller's header.
func (s *service) header(in Input) http.Header {
	header := http.Header{"User-Agent": {"tandem/" + tandem.Version}}
	for name, values := range s.Headers {
		header[http.CanonicalHeaderKey(name)] = values
	}
	header.Set("Accept-Encoding", "identity") // a result is kept as it comes
	header.Set("Idempotency-Key", in.RequestID)
	header.Set("Tandem-Attempt", fmt.Sprintf("%d/%d", in.Attempt, in.Attempts))
	if !in.Deadline.IsZero() {
		header.Set("Tandem-Deadline", in.Deadline.UTC().Format(time.RFC3339))
	}
	for name, value := range map[string]string{
		"Tandem-Complete": in.CompleteURL, "Traceparent": in.Traceparent, "Tracestate": in.Tracestate,
	} {
		if value != "" {
			header.Set(name, value)
		}
	}
	if !s.Secret.IsZero() {
		id, now := in.RequestID+".work", time.Now()
		header.Set(tandem.HeaderWebhookID, id)
		header.Set(tandem.HeaderWebhookTimestamp, strconv.FormatInt(now.Unix(), 10))
		header.Set(tandem.HeaderWebhookSignature, s.Secret.Sign(id, now, in.Data))
	}
	return header
}

// call makes one exchange and says what came of it.
func (s *service) call(ctx context.Context, in Input, method, target string) Result {
	permit, err := s.client.Reserve(ctx, target, "")
	var later *egress.Reschedule
	switch {
	case errors.As(err, &later):
		return Held("the service has failed and is left alone: "+later.Reason, later.Until)
	case err != nil:
		return Unknown(err.Error())
	}
	header := s.header(in)
	if method == http.MethodPost {
		header.Set("Content-Type", cmp.Or(in.ContentType, "application/json"))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var result Result
	answered := false
	exchange := permit.Do(ctx, egress.Call{Method: method, Header: header, Body: in.Data,
		Read: func(answer *http.Response) (err error) {
			result, err = s.answer(answer, in, cancel)
			answered = err == nil
			return err
		}})
	if !answered {
		result = unanswered(exchange)
	}
	result.statusCode = exchange.StatusCode
	return result
}

// unanswered is the result of an exchange without a full answer.
func unanswered(exchange egress.Result) Result {
	switch {
	case exchange.Outcome == tandem.OutcomeBlocked:
		return Failed("the address of the service is one that is never called")
	case exchange.StatusCode == http.StatusSwitchingProtocols:
		return Failed("the service answered 101, which nobody asked for")
	case exchange.Written || exchange.Interrupted || exchange.StatusCode != 0:
		return Unknown(exchange.Message)
	case exchange.Reschedule != nil: // the probe of a breaker, or a local fault
		return Held(exchange.Message, exchange.Reschedule.Until)
	default:
		return Again(exchange.Message, 0, true)
	}
}

// answer reads an answer and says what it means. An error says that it broke off. cancel ends the exchange.
func (s *service) answer(answer *http.Response, in Input, cancel func()) (Result, error) {
	code := answer.StatusCode
	after := egress.RetryAfter(answer.Header.Get("Retry-After"), time.Now())
	switch {
	case code == http.StatusAccepted:
		return s.taken(answer.Header.Get("Location"), after, in), nil
	case code >= 200 && code <= 299:
		result, err := s.done(answer, in)
		if errors.Is(err, errTooLarge) {
			return Failed("the result of the service is larger than max_result, " + bytesText(s.MaxResult)), nil
		}
		return result, err
	}
	message := said(answer, cancel)
	switch code {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return Again(message, after, false), nil
	case http.StatusTooEarly:
		return Again(message, after, true), nil
	case http.StatusRequestTimeout, http.StatusInternalServerError, http.StatusBadGateway, http.StatusGatewayTimeout:
		return Unknown(message), nil
	default:
		return Failed(message), nil
	}
}

// said is the status of an answer and the beginning of its body, as far as that comes within a second.
func said(answer *http.Response, cancel func()) string {
	defer time.AfterFunc(time.Second, cancel).Stop()
	text, _ := io.ReadAll(io.LimitReader(answer.Body, maxDetail))
	message := strings.TrimSpace(fmt.Sprintf("the service answered %d %s", answer.StatusCode,
		http.StatusText(answer.StatusCode)))
	if answer.StatusCode/100 == 3 {
		message += "; redirects are not followed"
	}
	if detail := detail(text); detail != "" {
		message += ": " + detail
	}
	return message
}

// done reads a result.
func (s *service) done(answer *http.Response, in Input) (Result, error) {
	if encoding := answer.Header.Get("Content-Encoding"); encoding != "" && !strings.EqualFold(encoding, "identity") {
		return Failed(fmt.Sprintf("the service answered with Content-Encoding %.50q, which nobody asked for", encoding)), nil
	}
	if answer.ContentLength > s.MaxResult {
		return Result{}, errTooLarge
	}
	contentType := answer.Header.Get("Content-Type")
	media, _, err := mime.ParseMediaType(contentType)
	switch {
	case media == "text/event-stream":
		return readEvents(answer.Body, s.MaxResult, in)
	case media == "application/x-ndjson":
		return readLines(answer.Body, s.MaxResult, in)
	case err != nil || len(contentType) > maxContentType:
		contentType = "application/octet-stream"
	}
	body, err := readBounded(answer.Body, s.MaxResult)
	if len(body) == 0 && (answer.Header.Get("Content-Type") == "" || media == "application/json") {
		return Done(nil, ""), err
	}
	return Done(body, contentType), err
}

// taken is the result of an answer that says that the result comes later.
func (s *service) taken(location string, after time.Duration, in Input) Result {
	if location == "" {
		if in.CompleteURL == "" {
			return Failed("the service answered 202 without a Location, so nobody would learn its result")
		}
		return Taken("", after)
	}
	at, err := s.url.Parse(location)
	if err != nil || !s.has(at.String()) {
		return Failed("the service answered 202 with a Location that is not of its own scheme, host and port")
	}
	return Taken(at.String(), after)
}

// has reports whether a URL has the scheme, host and port of the task's.
func (s *service) has(location string) bool {
	receiver, err := s.client.Receiver(location, "")
	return err == nil && receiver.Site == s.site
}
