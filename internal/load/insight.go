package load

import "fmt"

// Topics of an [Insight].
const (
	TopicAnswer     = "answer"     // how long the caller is kept
	TopicThroughput = "throughput" // how much gets done
	TopicResult     = "result"     // when the result is there
	TopicCallbacks  = "callbacks"  // whether results came back
	TopicErrors     = "errors"     // what did not get an answer
	TopicCost       = "cost"       // what the server spends
	TopicChoice     = "choice"     // when to choose which way
)

// Two figures are told apart beyond this factor; below it a reader is told that they are the same.
const alike = 1.1

// compare sets the async phase against the sync phase; nil: one of them did not run, or nothing was accepted in it.
func compare(r *Report) *Comparison {
	one, other := r.phase(PhaseSync), r.phase(PhaseAsync)
	if one == nil || other == nil || one.Sync == nil || other.Async == nil ||
		one.Sync.Response.Count == 0 || other.Async.Response.Count == 0 {
		return nil
	}
	waits, leaves := one.Sync, other.Async
	c := &Comparison{
		ResponseP50Ratio: quotient(waits.Response.P50MS, leaves.Response.P50MS),
		ResponseP99Ratio: quotient(waits.Response.P99MS, leaves.Response.P99MS),
		AcceptedRatio:    quotient(leaves.AcceptedPerSecond, waits.AcceptedPerSecond),
	}
	if r.Settings.Completion != CompletionPoll { // the pace of the polls is no figure of the service
		c.CompletedRatio = quotient(leaves.CompletedPerSecond, waits.CompletedPerSecond)
		if leaves.EndToEnd != nil && leaves.EndToEnd.Count > 0 {
			c.EndToEndP50Ratio = quotient(waits.Response.P50MS, leaves.EndToEnd.P50MS)
		}
	}
	c.SameCompletion = same(c.CompletedRatio)
	c.CPUPerRequestSync, _ = one.Server.perRequest(one)
	c.CPUPerRequestAsync, _ = other.Server.perRequest(other)
	return c
}

// quotient is 0 when there is none.
func quotient(a, b float64) float64 {
	if b <= 0 {
		return 0
	}
	return a / b
}

// same reports whether a ratio is too near to 1 to be told apart from it.
func same(ratio float64) bool { return ratio >= 1/alike && ratio <= alike }

// account is a report while insights are drawn from it.
type account struct {
	report      *Report
	comparison  *Comparison // nil: there is none
	metrics     map[string]Metric
	insights    []Insight
	sync, async *Phase // nil: did not run
}

// sentence collects the figures that a text rests on, as it is written.
type sentence struct {
	metrics map[string]Metric
	figures []string
	missing bool // one of them was not measured: the sentence cannot be said
}

// fig returns a figure for the text.
func (s *sentence) fig(name string) string {
	metric, ok := s.metrics[name]
	if !ok {
		s.missing = true
		return ""
	}
	s.figures = append(s.figures, name)
	return metric.show()
}

// add says something about a topic. A text for which a figure is missing is not said.
func (a *account) add(topic string, text func(*sentence) string) {
	s := sentence{metrics: a.metrics}
	if t := text(&s); !s.missing && t != "" {
		a.insights = append(a.insights, Insight{Topic: topic, Text: t, Figures: s.figures})
	}
}

// value is a figure to decide by; 0 when it was not measured.
func (a *account) value(name string) float64 { return a.metrics[name].Value }

// insights says in words what the figures show. Each sentence is chosen by
// figures and names them; nothing is said about what was not measured.
func insights(r *Report) []Insight {
	a := account{
		report: r, comparison: compare(r), metrics: byName(r),
		sync: r.phase(PhaseSync), async: r.phase(PhaseAsync),
	}
	a.answer()
	a.throughput()
	a.backlog()
	a.result()
	a.callbacks()
	a.errors()
	a.cost()
	a.mixed()
	a.choice()
	return a.insights
}

// answer compares how long callers are kept on the line.
func (a *account) answer() {
	if a.comparison == nil {
		return
	}
	ratio := a.comparison.ResponseP50Ratio
	a.add(TopicAnswer, func(s *sentence) string {
		waits, leaves := s.fig("sync.response.p50"), s.fig("async.accept.p50")
		switch {
		case same(ratio):
			return fmt.Sprintf("Callers are kept equally long: sync answers in %s and async accepts in %s (p50). The work is too short for async to save a wait.", waits, leaves)
		case ratio > 1:
			return fmt.Sprintf("Async lets the caller go %s sooner: it accepts in %s where sync answers in %s (p50).", showTimes(ratio), leaves, waits)
		default:
			return fmt.Sprintf("Sync lets the caller go %s sooner: it answers in %s where async accepts in %s (p50). Here accepting costs more than the work.", showTimes(1/ratio), waits, leaves)
		}
	})
	if a.value("async.accept.p50") > 0 && a.value("async.accept.p99") > 10*a.value("async.accept.p50") {
		a.add(TopicAnswer, func(s *sentence) string {
			return fmt.Sprintf("Acceptance is uneven: one in a hundred takes %s or more, the median is %s.", s.fig("async.accept.p99"), s.fig("async.accept.p50"))
		})
	}
}

// throughput compares how much gets done, and names what limits it when both do the same.
func (a *account) throughput() {
	if a.comparison == nil {
		return
	}
	ratio := a.comparison.CompletedRatio
	a.add(TopicThroughput, func(s *sentence) string {
		waits, leaves := s.fig("sync.completed_per_second"), s.fig("async.completed_per_second")
		switch {
		case a.polled():
			return fmt.Sprintf("How much async completes cannot be told: its %s are the pace of the polls (sync %s).", leaves, waits)
		case ratio <= 0: // one of them completed nothing: the errors and missing callbacks say why
			return ""
		case a.waitedInVain():
			return fmt.Sprintf("How much async completes cannot be told: %s callbacks were waited for in vain, and the wait is in its %s (sync %s).", s.fig("async.missing"), leaves, waits)
		case same(ratio) && a.keepsUp():
			return fmt.Sprintf("Both ways keep up with what was asked: sync completes %s, async %s. What they can do at most is a question for a run without --rate.", waits, leaves)
		case same(ratio) && a.computes():
			return fmt.Sprintf("The work is CPU-bound, and both ways complete it equally fast: sync %s, async %s. Async changes who waits, not how fast the work is done.", waits, leaves)
		case same(ratio):
			return fmt.Sprintf("Both ways complete the work equally fast: sync %s, async %s. Async changes who waits, not how fast the work is done.", waits, leaves)
		case ratio > 1 && a.report.Settings.RatePerSecond == 0:
			return fmt.Sprintf("Async completes %s as much: %s against %s. Sync never has more requests at work than callers who wait (%s); async keeps all of the server's slots busy.",
				showTimes(ratio), leaves, waits, showCount(int64(a.report.Settings.Concurrency)))
		case ratio > 1:
			return fmt.Sprintf("Async completes %s as much: %s against %s.", showTimes(ratio), leaves, waits)
		default:
			return fmt.Sprintf("Sync completes %s as much: %s against %s. Storing, handing out and delivering each request is what async spends the difference on.", showTimes(1/ratio), waits, leaves)
		}
	})
}

// polled reports whether async results were asked for, at a pace that is ours and not the service's.
func (a *account) polled() bool { return a.report.Settings.Completion == CompletionPoll }

// keepsUp reports whether an open loop's rate was done as fast as it was asked for,
// in which case it says nothing about what is possible.
func (a *account) keepsUp() bool {
	s := a.report.Settings
	return s.RatePerSecond > 0 && s.RampFromPerSecond == 0 && a.value("sync.completed_per_second")*alike >= s.RatePerSecond
}

// computes reports whether the task uses the processor for most of its time: by
// the service's own account, or by the task's name (compute is the contract's default) where there is none.
// The shortest time is that of the work with a core to itself; on a busy machine the others are
// longer without more work. Work of less than a millisecond is left out: what the server spends on
// it is mostly its own overhead.
func (a *account) computes() bool {
	least := a.value("sync.processing.min")
	if cpu, ok := a.metrics["sync.server.cpu_per_request"]; ok {
		return least >= 1 && cpu.Value >= 0.6*least
	}
	return least >= 1 && (a.report.Settings.Task == "compute" || a.report.Settings.Task == "")
}

// starved says that work which computes had to wait for a core, so that the figures are those of a
// busy machine; "": it had not, or nothing tells.
func starved(r *Report) string {
	if r.Settings.Task != "compute" && r.Settings.Task != "" {
		return ""
	}
	metrics := byName(r)
	for _, phase := range []string{PhaseSync, PhaseAsync} {
		used, took := metrics[phase+".server.cpu_per_request"], metrics[phase+".processing.p50"]
		whole := metrics[phase+".completed"].Value == metrics[phase+".accepted"].Value // else the CPU time is that of others as well
		if whole && used.Value >= 5 && took.Value > 2*used.Value {
			return fmt.Sprintf("The machine was busy: work that uses %s of CPU time took %s (p50), because other programs wanted the cores as well. On an idle machine the figures would be better.",
				used.show(), took.show())
		}
	}
	return ""
}

// waitedInVain reports whether async completes less per second for the reason that its time
// goes on until missing callbacks are given up.
func (a *account) waitedInVain() bool {
	return a.value("async.missing") > 0 && (a.comparison == nil || a.comparison.CompletedRatio < 1 && !same(a.comparison.CompletedRatio))
}

// backlog says that async accepted more than was done meanwhile, because then
// the end-to-end time tells about the length of the run.
func (a *account) backlog() {
	if a.async == nil || a.async.Async == nil || a.value("async.completed_per_second") <= 0 || a.waitedInVain() || a.polled() ||
		a.value("async.accepted_per_second") < 1.5*a.value("async.completed_per_second") {
		return
	}
	if a.value("async.delivery_lag.p50") > a.value("async.end_to_end.p50")/2 {
		a.add(TopicThroughput, func(s *sentence) string {
			return fmt.Sprintf("Async accepted %s and completed %s: the rest had been worked on and waited for the receiver.",
				s.fig("async.accepted_per_second"), s.fig("async.completed_per_second"))
		})
		return
	}
	a.add(TopicThroughput, func(s *sentence) string {
		return fmt.Sprintf("Async accepted %s and completed %s: the rest waited in the queue. So its end-to-end time grows with the length of the run, and says how long the queue was rather than how long the work takes.",
			s.fig("async.accepted_per_second"), s.fig("async.completed_per_second"))
	})
}

// result says when the result is there, and what the time to it consists of.
func (a *account) result() {
	if a.polled() {
		a.add(TopicResult, func(s *sentence) string {
			return fmt.Sprintf("Half of the async results were seen within %s, by polling; they may have been there long before.", s.fig("async.end_to_end.p50"))
		})
		return
	}
	if a.comparison != nil && a.comparison.EndToEndP50Ratio > 0 {
		ratio := a.comparison.EndToEndP50Ratio
		a.add(TopicResult, func(s *sentence) string {
			waits, leaves := s.fig("sync.response.p50"), s.fig("async.end_to_end.p50")
			switch {
			case same(ratio):
				return fmt.Sprintf("The result itself comes equally soon: %s on the line, %s by callback (p50).", waits, leaves)
			case ratio < 1:
				return fmt.Sprintf("The result itself comes later with async: %s by callback, %s on the line (p50).", leaves, waits)
			default:
				return fmt.Sprintf("The result itself comes sooner with async: %s by callback, %s on the line (p50).", leaves, waits)
			}
		})
	}
	whole, work, lag := a.value("async.end_to_end.p50"), a.value("async.processing.p50"), a.value("async.delivery_lag.p50")
	if whole <= 0 || work <= 0 {
		return
	}
	a.add(TopicResult, func(s *sentence) string {
		text := fmt.Sprintf("Of the %s from request to callback (p50), the work takes %s and the delivery %s", s.fig("async.end_to_end.p50"), s.fig("async.processing.p50"), s.fig("async.delivery_lag.p50"))
		if whole > 2*(work+lag) {
			return text + "; most of it is waiting for a slot."
		}
		return text + "."
	})
}

// callbacks says whether all that was promised came.
func (a *account) callbacks() {
	if a.async == nil || a.async.Callbacks == nil || a.async.Callbacks.Expected == 0 {
		return
	}
	c := a.async.Callbacks
	switch {
	case a.polled():
		a.add(TopicCallbacks, func(s *sentence) string {
			return fmt.Sprintf("No callback was expected, because none could reach the generator: %s of %s results were seen by polling.", s.fig("async.polled"), s.fig("async.expected"))
		})
	case c.Missing == c.Expected && c.BadSignature > 0:
		a.add(TopicCallbacks, func(s *sentence) string {
			return fmt.Sprintf("Not one of %s callbacks came with a good signature: %s had another. Is the signing secret that of the service?", s.fig("async.expected"), s.fig("async.bad_signature"))
		})
	case c.Missing == c.Expected && c.Misbehaved > 0:
		a.add(TopicCallbacks, func(s *sentence) string {
			return fmt.Sprintf("Not one of %s callbacks was taken.", s.fig("async.expected"))
		})
	case c.Missing == c.Expected:
		a.add(TopicCallbacks, func(s *sentence) string {
			return fmt.Sprintf("Not one of %s callbacks came: %s are missing. Can the service reach the generator's callback address?", s.fig("async.expected"), s.fig("async.missing"))
		})
	case c.Missing > 0:
		a.add(TopicCallbacks, func(s *sentence) string {
			return fmt.Sprintf("%s of %s callbacks had not come when the wait for them ended. The times to a callback are those of the %s that came.",
				s.fig("async.missing"), s.fig("async.expected"), s.fig("async.delivered"))
		})
	case a.report.Settings.Signed:
		a.add(TopicCallbacks, func(s *sentence) string {
			return fmt.Sprintf("All %s callbacks came, and every signature was verified.", s.fig("async.delivered"))
		})
	default:
		a.add(TopicCallbacks, func(s *sentence) string {
			return fmt.Sprintf("All %s callbacks came. Their signatures were not checked.", s.fig("async.delivered"))
		})
	}
	if c.Duplicate > 0 {
		a.add(TopicCallbacks, func(s *sentence) string {
			return fmt.Sprintf("%s of the callbacks were repeats. Delivery is at least once: a receiver drops repeats by their webhook-id.", s.fig("async.duplicate"))
		})
	}
	if c.Misbehaved > 0 {
		a.add(TopicCallbacks, func(s *sentence) string {
			return fmt.Sprintf("%s callbacks were answered badly on purpose, and the service tried again: %s of the %s that were delivered came at a later try.",
				s.fig("async.misbehaved"), s.fig("async.redelivered"), s.fig("async.delivered"))
		})
	}
	if c.Breaker == BreakerOpen {
		a.add(TopicCallbacks, func(s *sentence) string {
			return fmt.Sprintf("When the wait ended, the service's circuit breaker for this receiver was open: after too many failures it holds callbacks back for a while, and %s were missing. A longer --drain shows it close again.",
				s.fig("async.missing"))
		})
	}
	if c.BadSignature > 0 && c.Missing < c.Expected {
		a.add(TopicCallbacks, func(s *sentence) string {
			return fmt.Sprintf("%s of the callbacks had a signature that does not verify: another secret, or a forgery.", s.fig("async.bad_signature"))
		})
	}
}

// errors says what did not get the answer it asked for.
func (a *account) errors() {
	for _, side := range sides {
		refused, failed := a.value(side.prefix+".refused"), a.value(side.prefix+".errors")
		if refused > 0 {
			a.add(TopicErrors, func(s *sentence) string {
				return fmt.Sprintf("In %s, %s of the answers to %s requests said 429 or 503 (not now): the figures are those of a service at its limit.",
					side.words, s.fig(side.prefix+".refused"), s.fig(side.prefix+".sent"))
			})
		}
		if failed > refused {
			a.add(TopicErrors, func(s *sentence) string {
				return fmt.Sprintf("In %s, %s of %s requests ended in an error; %s of what was sent was completed.",
					side.words, s.fig(side.prefix+".errors"), s.fig(side.prefix+".sent"), s.fig(side.prefix+".success_rate"))
			})
		}
	}
}

// cost compares what the server spends on a request.
func (a *account) cost() {
	waits, leaves := a.value("sync.server.cpu_per_request"), a.value("async.server.cpu_per_request")
	if waits <= 0 || leaves <= 0 {
		return
	}
	a.add(TopicCost, func(s *sentence) string {
		one, other := s.fig("sync.server.cpu_per_request"), s.fig("async.server.cpu_per_request")
		switch ratio := leaves / waits; {
		case same(ratio):
			return fmt.Sprintf("A request costs the server equally much CPU time: sync %s, async %s.", one, other)
		case ratio > 1:
			return fmt.Sprintf("Async costs the server more CPU time: %s a request, sync %s. That is the price of storing, handing out, signing and sending.", other, one)
		default:
			return fmt.Sprintf("Async costs the server less CPU time: %s a request, sync %s.", other, one)
		}
	})
}

// mixed says what the two do to each other.
func (a *account) mixed() {
	for _, side := range []struct{ alone, together, words string }{
		{"sync.response.p99", "mixed.sync.response.p99", "sync answers"},
		{"async.accept.p99", "mixed.async.accept.p99", "async acceptances"},
	} {
		alone, together := a.value(side.alone), a.value(side.together)
		if alone <= 0 || together <= 0 {
			continue
		}
		a.add(TopicAnswer, func(s *sentence) string {
			one, other := s.fig(side.alone), s.fig(side.together)
			switch ratio := together / alone; {
			case same(ratio):
				return fmt.Sprintf("Side by side, %s are as fast as alone: p99 %s, alone %s.", side.words, other, one)
			case ratio > 1:
				return fmt.Sprintf("Side by side, %s are slower than alone: p99 %s, alone %s.", side.words, other, one)
			default:
				return fmt.Sprintf("Side by side, %s are faster than alone: p99 %s, alone %s.", side.words, other, one)
			}
		})
	}
}

// choice says when to choose which, from what was measured.
func (a *account) choice() {
	c := a.comparison
	if c == nil {
		return
	}
	a.add(TopicChoice, func(s *sentence) string {
		p50, p99 := s.fig("sync.response.p50"), s.fig("sync.response.p99")
		if c.ResponseP50Ratio <= alike {
			return fmt.Sprintf("Choose sync for work like this: the result is there in %s (p99 %s), and no callback has to be received.", p50, p99)
		}
		return fmt.Sprintf("Choose sync when the caller cannot go on without the result and may be kept for %s (p99 %s).", p50, p99)
	})
	a.add(TopicChoice, func(s *sentence) string {
		switch lost := a.async.Callbacks != nil && a.async.Callbacks.Missing > 0 && a.async.Callbacks.Misbehaved == 0; {
		case lost && !a.polled():
			return fmt.Sprintf("Choose async only after it is known why %s of %s callbacks are missing.", s.fig("async.missing"), s.fig("async.expected"))
		case c.ResponseP50Ratio <= alike:
			return fmt.Sprintf("Choose async here for what it promises, not for speed: what is accepted (%s) is kept, done, and its result sent again until it arrives.", s.fig("async.accept.p50"))
		case c.CompletedRatio > alike:
			return fmt.Sprintf("Choose async when callers can go on without the result: they are free after %s, and %s are completed.", s.fig("async.accept.p50"), s.fig("async.completed_per_second"))
		case c.EndToEndP50Ratio == 0:
			return fmt.Sprintf("Choose async when callers can go on without the result: they are free after %s.", s.fig("async.accept.p50"))
		default:
			return fmt.Sprintf("Choose async when callers can go on without the result: they are free after %s, and the result follows in %s (p50).", s.fig("async.accept.p50"), s.fig("async.end_to_end.p50"))
		}
	})
}
