package store

import (
	"encoding/json"
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"

	"tandem"
)

// Counters are what Stats returns: a copy in memory of what a database keeps, changed after each commit by what that
// commit added. The zero value has counted nothing.
type Counters struct {
	mu      sync.Mutex       // guards the fields below
	values  map[string]int64 // as many as there are modes, statuses, outcomes, codes, lanes and tasks; never changed
	commits Commits          // not in the database
}

// Names of counters: a group, a slash, and the member.
const (
	counterUnfinished = "unfinished/all" // gauge
	counterRows       = "rows/all"       // gauge: rows of the history

	// Of Config.Counted, whose name is the group.
	memberRows  = "/rows"       // gauge: requests in the history
	memberEnded = "/completed"  // that ended well
	memberWork  = "/work_count" // that ended, well or not
	memberTime  = "/work_us"    // their time in the task, microseconds

	groupAccepted  = "accepted/"   // by mode
	groupTask      = "task/"       // accepted, by task
	groupNow       = "now/"        // gauge by status
	groupEnded     = "ended/"      // by status
	groupCallback  = "callback/"   // by callback status
	groupFailure   = "failure/"    // by error code
	groupAttempt   = "attempt/"    // by outcome
	groupQueue     = "queue/"      // gauge by lane
	groupWorkCount = "work_count/" // by mode
	groupWorkTime  = "work_us/"    // by mode, microseconds
	groupRecent    = "recent/"     // accepted of Config.Counted, by hour since 1970; the last recentHours only
)

// recentHours is how many hours groupRecent has, the current one included.
const recentHours = 24

// hourOf numbers the hours since 1970.
func hourOf(t time.Time) int64 { return t.Unix() / 3600 }

func recentCounter(t time.Time) string { return groupRecent + strconv.FormatInt(hourOf(t), 10) }

// isRecent reports whether a counter counts one of the last recentHours.
func isRecent(counter string, now time.Time) bool {
	digits, ok := strings.CutPrefix(counter, groupRecent)
	hour, err := strconv.ParseInt(digits, 10, 64)
	age := hourOf(now) - hour
	return ok && err == nil && age >= 0 && age < recentHours
}

func nowCounter(status tandem.Status) string   { return groupNow + string(status) }
func endedCounter(status tandem.Status) string { return groupEnded + string(status) }
func failureCounter(code string) string        { return groupFailure + code }
func queueCounter(lane Lane) string            { return groupQueue + string(lane) }

// Deltas are what a transaction adds to counters.
// :: counter → how much
type Deltas map[string]int64

// Accept counts a new request.
func (d Deltas) Accept(r *tandem.Request, lane Lane, now time.Time, cfg *Config) {
	if cfg.Counts(r.Task) {
		d[r.Task+memberRows]++
		d[recentCounter(now)]++
	}
	if lane != LaneNone {
		d[queueCounter(lane)]++
	}
	d[groupAccepted+string(r.Mode)]++
	d[groupTask+r.Task]++
	d[nowCounter(r.Status)]++
	d[counterUnfinished]++
	d[counterRows]++
}

// Begin counts requests whose work has begun.
func (d Deltas) Begin(n int64) {
	d[nowCounter(tandem.StatusPending)] -= n
	d[nowCounter(tandem.StatusProcessing)] += n
}

// Resume counts requests whose work has not ended and is to be done again.
func (d Deltas) Resume(n int64) { d.Begin(-n) }

// Interrupt counts requests whose work was cut off and is not done again.
func (d Deltas) Interrupt(n int64) {
	d[nowCounter(tandem.StatusProcessing)] -= n
	d[endedCounter(tandem.StatusFailed)] += n
	d[failureCounter(tandem.FailedInterrupted)] += n
	d[counterUnfinished] -= n
}

// Delete counts requests that are taken out of the history; counted are those of Config.Counted among them.
func (d Deltas) Delete(n, counted int64, cfg *Config) {
	d[counterRows] -= n
	if counted > 0 {
		d[cfg.Counted+memberRows] -= counted
	}
}

// Settle counts what came of a job. before is the status that the row had.
func (d Deltas) Settle(before tandem.Status, t *Transition, cfg *Config) {
	after := &t.Request
	if t.From != LaneNone {
		d[queueCounter(t.From)]--
	}
	if t.Lane != LaneNone {
		d[queueCounter(t.Lane)]++
	}
	if t.Outcome != nil {
		d.end(after, t.Outcome, cfg.Counts(after.Task))
	}
	if after.Status != before {
		for _, status := range []tandem.Status{tandem.StatusPending, tandem.StatusProcessing} {
			if before == status {
				d[nowCounter(status)]--
			}
			if after.Status == status {
				d[nowCounter(status)]++
			}
		}
		if t.Outcome == nil && t.Lane == LaneNone {
			d[endedCounter(after.Status)]++
		}
	}
	if t.Lane == LaneNone {
		if after.CallbackStatus != "" {
			d[groupCallback+string(after.CallbackStatus)]++
		}
		d[counterUnfinished]--
	}
	if t.Attempt != nil {
		d[groupAttempt+string(t.Attempt.Outcome)]++
	}
}

// end counts work that ended. counted says whether its task is Config.Counted.
func (d Deltas) end(r *tandem.Request, o *Outcome, counted bool) {
	d[endedCounter(o.Status())]++
	if o.ErrorCode != "" {
		d[failureCounter(o.ErrorCode)]++
	}
	if counted && o.ErrorCode == "" {
		d[r.Task+memberEnded]++
	}
	if o.StartedAt.IsZero() {
		return
	}
	d[groupWorkCount+string(r.Mode)]++
	d[groupWorkTime+string(r.Mode)] += o.Processing.Microseconds()
	if counted {
		d[r.Task+memberWork]++
		d[r.Task+memberTime] += o.Processing.Microseconds()
	}
}

// Set replaces all values.
func (c *Counters) Set(values map[string]int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.values = values
}

// Values are all values, by counter. They must not be changed.
func (c *Counters) Values() map[string]int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.values
}

// With returns the values with what a transaction adds to them, as a map and as a database keeps it.
func (c *Counters) With(deltas Deltas, now time.Time) (map[string]int64, []byte, error) {
	before := c.Values()
	next := maps.Clone(before)
	if next == nil {
		next = map[string]int64{}
	}
	for name, delta := range deltas {
		if delta != 0 {
			next[name] += delta
		}
		if _, known := before[name]; !known && strings.HasPrefix(name, groupRecent) { // a new hour: the oldest goes
			DropOldHours(next, now)
		}
	}
	counts, err := json.Marshal(next)
	return next, counts, err
}

// DropOldHours removes the counters of hours that are not recent any more.
func DropOldHours(values map[string]int64, now time.Time) {
	maps.DeleteFunc(values, func(name string, _ int64) bool {
		return strings.HasPrefix(name, groupRecent) && !isRecent(name, now)
	})
}

// Committed counts a transaction of so many writes.
func (c *Counters) Committed(writes int, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.commits.Count++
	c.commits.Writes += int64(writes)
	c.commits.Time += took
}

// Failed counts a transaction that was rolled back.
func (c *Counters) Failed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.commits.Failed++
}

// AddCommits adds what other has counted of transactions.
func (c *Counters) AddCommits(other *Counters) {
	other.mu.Lock()
	more := other.commits
	other.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.commits.Count += more.Count
	c.commits.Failed += more.Failed
	c.commits.Writes += more.Writes
	c.commits.Time += more.Time
}

// Unfinished is how many requests are not over.
func (c *Counters) Unfinished() int64 { return c.Values()[counterUnfinished] }

// Over is how many requests of the history are over.
func (c *Counters) Over() int64 {
	values := c.Values()
	return values[counterRows] - values[counterUnfinished]
}

// Accepted is how many requests of a mode were ever accepted.
func (c *Counters) Accepted(mode tandem.Mode) int64 { return c.Values()[groupAccepted+string(mode)] }

// Kept is how many requests of Config.Counted are in the history.
func (c *Counters) Kept(cfg *Config) int64 { return c.Values()[cfg.Counted+memberRows] }

// Tasks are the tasks that requests were ever accepted for.
func (c *Counters) Tasks() (tasks []string) {
	for name := range c.Values() {
		if task, ok := strings.CutPrefix(name, groupTask); ok {
			tasks = append(tasks, task)
		}
	}
	return tasks
}

// Stats sorts the counters into groups.
func (c *Counters) Stats(now time.Time, cfg *Config) Stats {
	counted := cfg.Counted
	c.mu.Lock()
	defer c.mu.Unlock()
	stats := Stats{
		Requests:   map[tandem.Mode]int64{},
		Now:        map[tandem.Status]int64{},
		Ended:      map[tandem.Status]int64{},
		Callback:   map[tandem.CallbackStatus]int64{},
		Failures:   map[string]int64{},
		Attempts:   map[tandem.Outcome]int64{},
		Work:       map[tandem.Mode]WorkTime{},
		Queue:      map[Lane]int64{},
		Unfinished: c.values[counterUnfinished],
		Capacity:   cfg.MaxQueue,
		Commits:    c.commits,
		Counted: Counted{
			Accepted: c.values[groupTask+counted],
			Kept:     c.values[counted+memberRows],
			Ended:    c.values[counted+memberEnded],
			Work: WorkTime{
				Count: c.values[counted+memberWork],
				Total: time.Duration(c.values[counted+memberTime]) * time.Microsecond,
			},
		},
	}
	for name, value := range c.values {
		group, member, _ := strings.Cut(name, "/")
		switch group + "/" {
		case groupAccepted:
			stats.Requests[tandem.Mode(member)] = value
		case groupNow:
			stats.Now[tandem.Status(member)] = value
		case groupEnded:
			stats.Ended[tandem.Status(member)] = value
		case groupCallback:
			stats.Callback[tandem.CallbackStatus(member)] = value
		case groupFailure:
			stats.Failures[member] = value
		case groupAttempt:
			stats.Attempts[tandem.Outcome(member)] = value
		case groupQueue:
			stats.Queue[Lane(member)] = value
		case groupRecent:
			if isRecent(name, now) {
				stats.Counted.Recent += value
			}
		case groupWorkCount:
			stats.Work[tandem.Mode(member)] = WorkTime{
				Count: value,
				Total: time.Duration(c.values[groupWorkTime+member]) * time.Microsecond,
			}
		}
	}
	return stats
}
