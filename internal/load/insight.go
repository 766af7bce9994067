package load

import "fmt"

// Topics of an [Insight].
const (
	TopicAnswer     = "answer"     // how long the caller waits
	TopicThroughput = "throughput" // how much gets done
	TopicResult     = "result"     // when the result is there
	TopicCallbacks  = "callbacks"  // whether results came back
	TopicErrors     = "errors"     // failed requests
	TopicCost       = "cost"       // CPU time of the server
	TopicChoice     = "choice"     // advice
)

// alike is the largest ratio of equal figures.
const alike = 1.1

// same reports whether a ratio is too near to 1 to be told apart from it.
func same(ratio float64) bool { return ratio >= 1/alike && ratio <= alike }

// compare sets the async phase against the sync phase; nil: one of them did not run, or nothing was accepted in it.
func compare(r *Report) *Comparison {
	one, other := r.phase(PhaseSync), r.phase(PhaseAsync)
	sync, async := one.side(false), other.side(true)
	if sync == nil || async == nil || sync.Response.Count == 0 || async.Response.Count == 0 {
		return nil
	}
	c := &Comparison{
		ResponseP50Ratio:   quotient(sync.Response.P50MS, async.Response.P50MS),
		ResponseP99Ratio:   quotient(sync.Response.P99MS, async.Response.P99MS),
		AcceptedRatio:      quotient(async.AcceptedPerSecond, sync.AcceptedPerSecond),
		CPUPerRequestSync:  one.cpuPerRequest(),
		CPUPerRequestAsync: other.cpuPerRequest(),
	}
	if r.Settings.Completion != CompletionPoll { // the pace of the polls is no figure of the service
		c.CompletedRatio = quotient(async.CompletedPerSecond, sync.CompletedPerSecond)
		if async.EndToEnd != nil && async.EndToEnd.Count > 0 {
			c.EndToEndP50Ratio = quotient(sync.Response.P50MS, async.EndToEnd.P50MS)
		}
	}
	c.SameCompletion = same(c.CompletedRatio)
	return c
}

// quotient is 0 when there is none.
func quotient(a, b float64) float64 {
	if b <= 0 {
		return 0
	}
	return a / b
}

// account is a report while insights are drawn from it.
type account struct {
	figures

	settings   *Settings
	comparison *Comparison // nil: there is none
	callbacks  *Callbacks  // of the async phase; nil: none
	insights   []Insight
}

// say adds a sentence about a topic, with figures in braces. A figure without a measurement drops the sentence.
func (a *account) say(topic, text string, args ...any) {
	if filled, names, ok := a.fill(fmt.Sprintf(text, args...)); ok {
		a.insights = append(a.insights, Insight{Topic: topic, Text: filled, Figures: names})
	}
}

// insights puts the figures into words. Each sentence is chosen by figures and names them; without a measurement there
// is none.
func insights(r *Report) []Insight {
	a := account{figures: figuresOf(r), settings: &r.Settings, comparison: compare(r)}
	if async := r.phase(PhaseAsync); async != nil {
		a.callbacks = async.Callbacks
	}
	if a.comparison != nil {
		a.answer()
		a.throughput()
	}
	a.backlog()
	a.result()
	a.returned()
	a.errors()
	a.cost()
	a.mixed()
	if a.comparison != nil {
		a.choice()
	}
	return a.insights
}

// answer compares how long callers wait for the response.
func (a *account) answer() {
	switch ratio := a.comparison.ResponseP50Ratio; {
	case same(ratio):
		a.say(TopicAnswer, "Callers wait equally long: sync answers in {sync.response.p50} and async accepts in "+
			"{async.accept.p50} (p50). The work is too short for async to save a wait.")
	case ratio > 1:
		a.say(TopicAnswer, "Async frees the caller %s sooner: it accepts in {async.accept.p50} where sync answers in "+
			"{sync.response.p50} (p50).", showTimes(ratio))
	default:
		a.say(TopicAnswer, "Sync frees the caller %s sooner: it answers in {sync.response.p50} where async accepts in "+
			"{async.accept.p50} (p50). Here accepting costs more than the work.", showTimes(1/ratio))
	}
	if p50 := a.value("async.accept.p50"); p50 > 0 && a.value("async.accept.p99") > 10*p50 {
		a.say(TopicAnswer, "Acceptance is uneven: one in a hundred takes {async.accept.p99} or more, the median is "+
			"{async.accept.p50}.")
	}
}

// throughput compares the completed work, and names the limit when both sides are equal.
func (a *account) throughput() {
	const both = "sync {sync.completed_per_second}, async {async.completed_per_second}"
	const against = "{async.completed_per_second} against {sync.completed_per_second}."
	ratio := a.comparison.CompletedRatio
	switch {
	case a.polled():
		a.say(TopicThroughput, "The throughput of async is unknown: its {async.completed_per_second} are the pace of "+
			"the polls (sync {sync.completed_per_second}).")
	case ratio <= 0: // one of them completed nothing: the errors and missing callbacks say why
	case a.waitedInVain():
		a.say(TopicThroughput, "The throughput of async is unknown: {async.missing} callbacks were waited for in "+
			"vain, and the wait is in its {async.completed_per_second} (sync {sync.completed_per_second}).")
	case same(ratio) && a.keepsUp():
		a.say(TopicThroughput, "Both ways keep up with what was asked: sync completes {sync.completed_per_second}, async "+
			"{async.completed_per_second}. A run without --rate measures their limits.")
	case same(ratio) && a.computes():
		a.say(TopicThroughput, "The work is CPU-bound, and both ways complete it equally fast: "+both+
			". Async changes who waits, not how fast the work is done.")
	case same(ratio):
		a.say(TopicThroughput, "Both ways complete the work equally fast: "+both+
			". Async changes who waits, not how fast the work is done.")
	case ratio > 1 && a.settings.RatePerSecond == 0:
		a.say(TopicThroughput, "Async completes %s as much: "+against+" Sync never has more requests at work than callers "+
			"who wait (%s); async keeps all of the server's slots busy.",
			showTimes(ratio), showCount(int64(a.settings.Concurrency)))
	case ratio > 1:
		a.say(TopicThroughput, "Async completes %s as much: "+against, showTimes(ratio))
	default:
		a.say(TopicThroughput, "Sync completes %s as much: {sync.completed_per_second} against "+
			"{async.completed_per_second}. Storing, dispatching and delivering each request makes the "+
			"difference.", showTimes(1/ratio))
	}
}

// polled reports whether async results were polled for: their pace is ours, not the service's.
func (a *account) polled() bool { return a.settings.Completion == CompletionPoll }

// keepsUp reports whether the service kept up with an open loop's rate: then the rate says nothing about the limit.
func (a *account) keepsUp() bool {
	rate := a.settings.RatePerSecond
	return rate > 0 && a.settings.RampFromPerSecond == 0 && a.value("sync.completed_per_second")*alike >= rate
}

// computes reports whether the task uses the processor for most of its time: by the service's own account, or by the
// task's name where there is none. The minimum stands for the work alone on a core; on a busy machine the others are
// longer without more work. Work of less than a millisecond is left out: its cost is mostly overhead of the server.
func (a *account) computes() bool {
	least := a.value("sync.processing.min")
	if cpu, ok := a.figures["sync.server.cpu_per_request"]; ok {
		return least >= 1 && cpu.Value >= 0.6*least
	}
	return least >= 1 && a.settings.computes()
}

// computes reports whether the task is compute, the default.
func (s *Settings) computes() bool { return s.Task == "compute" || s.Task == "" }

// waitedInVain reports whether async completes less per second because its time includes the wait for missing
// callbacks.
func (a *account) waitedInVain() bool {
	return a.value("async.missing") > 0 &&
		(a.comparison == nil || a.comparison.CompletedRatio < 1 && !same(a.comparison.CompletedRatio))
}

// backlog reports more async acceptances than completions: then the end-to-end time depends on the length of the run.
func (a *account) backlog() {
	completed := a.value("async.completed_per_second")
	switch {
	case completed <= 0 || a.waitedInVain() || a.polled() || a.value("async.accepted_per_second") < 1.5*completed:
	case a.value("async.delivery_lag.p50") > a.value("async.end_to_end.p50")/2:
		a.say(TopicThroughput, "Async accepted {async.accepted_per_second} and completed {async.completed_per_second}: "+
			"the rest had been worked on and waited for the receiver.")
	default:
		a.say(TopicThroughput, "Async accepted {async.accepted_per_second} and completed {async.completed_per_second}: "+
			"the rest waited in the queue. So its end-to-end time grows with the length of the run, and says how long the "+
			"queue was rather than how long the work takes.")
	}
}

// result compares the times to the result, and splits the async one.
func (a *account) result() {
	if a.polled() {
		a.say(TopicResult, "Half of the async results were seen within {async.end_to_end.p50}, by polling; they may have "+
			"been there long before.")
		return
	}
	if a.comparison != nil && a.comparison.EndToEndP50Ratio > 0 {
		switch ratio := a.comparison.EndToEndP50Ratio; {
		case same(ratio):
			a.say(TopicResult, "The result itself comes equally soon: {sync.response.p50} in the response, "+
				"{async.end_to_end.p50} by callback (p50).")
		default:
			word := "later"
			if ratio > 1 {
				word = "sooner"
			}
			a.say(TopicResult, "The result itself comes %s with async: {async.end_to_end.p50} by callback, "+
				"{sync.response.p50} in the response (p50).", word)
		}
	}
	whole, work := a.value("async.end_to_end.p50"), a.value("async.processing.p50")
	if whole <= 0 || work <= 0 {
		return
	}
	rest := ""
	if whole > 2*(work+a.value("async.delivery_lag.p50")) {
		rest = "; most of it is waiting for a slot"
	}
	a.say(TopicResult, "Of the {async.end_to_end.p50} from request to callback (p50), the work takes "+
		"{async.processing.p50} and the delivery {async.delivery_lag.p50}%s.", rest)
}

// returned describes the callbacks.
func (a *account) returned() {
	c := a.callbacks
	if c == nil || c.Expected == 0 {
		return
	}
	a.missing(c)
	if c.Duplicate > 0 {
		a.say(TopicCallbacks, "{async.duplicate} of the callbacks were repeats. Delivery is at least once: a receiver "+
			"drops repeats by their webhook-id.")
	}
	if c.Misbehaved > 0 {
		a.say(TopicCallbacks, "{async.misbehaved} callbacks were answered badly on purpose, and the service tried again: "+
			"{async.redelivered} of the {async.delivered} that were delivered came by a retry.")
	}
	if c.Breaker == BreakerOpen {
		a.say(TopicCallbacks, "When the wait ended, the service's circuit breaker for this receiver was open: after too "+
			"many failures it holds callbacks back for a while, and {async.missing} were missing. A longer --drain shows "+
			"it close again.")
	}
	if c.BadSignature > 0 && c.Missing < c.Expected {
		a.say(TopicCallbacks, "{async.bad_signature} of the callbacks had an invalid signature: another "+
			"secret, or a forgery.")
	}
}

// missing describes the missing callbacks, with a likely reason.
func (a *account) missing(c *Callbacks) {
	all := c.Missing == c.Expected
	switch {
	case a.polled():
		a.say(TopicCallbacks, "No callback was expected, because none could reach the generator: {async.polled} of "+
			"{async.expected} results were seen by polling.")
	case all && c.BadSignature > 0:
		a.say(TopicCallbacks, "None of {async.expected} callbacks came with a good signature: {async.bad_signature} "+
			"had another. Is it the service's signing secret?")
	case all && c.Misbehaved > 0:
		a.say(TopicCallbacks, "None of {async.expected} callbacks was accepted.")
	case all:
		a.say(TopicCallbacks, "None of {async.expected} callbacks came: {async.missing} are missing. Can the service "+
			"reach the generator's callback address?")
	case c.Missing > 0:
		a.say(TopicCallbacks, "{async.missing} of {async.expected} callbacks had not come when the wait for them ended. "+
			"The times to a callback are those of the {async.delivered} that came.")
	case a.settings.Signed:
		a.say(TopicCallbacks, "All {async.delivered} callbacks came, and every signature was verified.")
	default:
		a.say(TopicCallbacks, "All {async.delivered} callbacks came. Their signatures were not checked.")
	}
}

// errors describes refusals and errors.
func (a *account) errors() {
	for _, side := range sides {
		refused := a.value(side.prefix + ".refused")
		if refused > 0 {
			a.say(TopicErrors, "In %s, {%[2]s.refused} of the answers to {%[2]s.sent} requests said 429 or 503 (not now): "+
				"the figures are those of a service at its limit.", side.words, side.prefix)
		}
		if a.value(side.prefix+".errors") > refused {
			a.say(TopicErrors, "In %s, {%[2]s.errors} of {%[2]s.sent} requests ended in an error; {%[2]s.success_rate} of "+
				"what was sent was completed.", side.words, side.prefix)
		}
	}
}

// cost compares the server's CPU time per request.
func (a *account) cost() {
	const sync, async = "sync.server.cpu_per_request", "async.server.cpu_per_request"
	switch ratio := quotient(a.value(async), a.value(sync)); {
	case ratio <= 0:
	case same(ratio):
		a.say(TopicCost, "A request costs the server equally much CPU time: sync {"+sync+"}, async {"+async+"}.")
	case ratio > 1:
		a.say(TopicCost, "Async costs the server more CPU time: {"+async+"} a request, sync {"+sync+"}. That is the price "+
			"of storing, dispatching, signing and sending.")
	default:
		a.say(TopicCost, "Async costs the server less CPU time: {"+async+"} a request, sync {"+sync+"}.")
	}
}

// mixed describes the effect of both sides on each other.
func (a *account) mixed() {
	for _, side := range []struct{ alone, words string }{
		{"sync.response.p99", "sync answers"}, {"async.accept.p99", "async acceptances"},
	} {
		ratio := quotient(a.value("mixed."+side.alone), a.value(side.alone))
		words := "as fast as alone"
		switch {
		case ratio <= 0:
			continue
		case same(ratio):
		case ratio > 1:
			words = "slower than alone"
		default:
			words = "faster than alone"
		}
		a.say(TopicAnswer, "Side by side, %s are %s: p99 {mixed.%[3]s}, alone {%[3]s}.", side.words, words, side.alone)
	}
}

// choice advises, by the measurements.
func (a *account) choice() {
	c := a.comparison
	if c.ResponseP50Ratio <= alike {
		a.say(TopicChoice, "Choose sync for work like this: the result is there in {sync.response.p50} "+
			"(p99 {sync.response.p99}), and no callback has to be received.")
	} else {
		a.say(TopicChoice, "Choose sync when the caller cannot go on without the result and may wait "+
			"{sync.response.p50} (p99 {sync.response.p99}).")
	}
	const async = "Choose async when callers can go on without the result: they are free after {async.accept.p50}"
	switch lost := a.callbacks != nil && a.callbacks.Missing > 0 && a.callbacks.Misbehaved == 0; {
	case lost && !a.polled():
		a.say(TopicChoice, "Find out why {async.missing} of {async.expected} callbacks are missing before you choose async.")
	case c.ResponseP50Ratio <= alike:
		a.say(TopicChoice, "Choose async here for what it promises, not for speed: what is accepted ({async.accept.p50}) "+
			"is kept, done, and its result sent again until it arrives.")
	case c.CompletedRatio > alike:
		a.say(TopicChoice, async+", and {async.completed_per_second} are completed.")
	case c.EndToEndP50Ratio == 0:
		a.say(TopicChoice, async+".")
	default:
		a.say(TopicChoice, async+", and the result follows in {async.end_to_end.p50} (p50).")
	}
}
