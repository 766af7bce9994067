package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"

	"tandem"
)

// counters are what Stats returns: a copy in memory of the table of the same name,
// changed after each commit by what that commit added.
type counters struct {
	mu      sync.Mutex       // guards the fields below
	values  map[string]int64 // as many as there are modes, statuses, outcomes, codes, lanes and tasks
	commits Commits          // not in the table
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

func (c *counters) load(ctx context.Context, conn *sql.Conn) error {
	rows, err := conn.QueryContext(ctx, `SELECT name, value FROM counters`)
	if err != nil {
		return err
	}
	defer rows.Close()
	values := map[string]int64{}
	for rows.Next() {
		var name string
		var value int64
		if err := rows.Scan(&name, &value); err != nil {
			return err
		}
		values[name] = value
	}
	c.mu.Lock()
	c.values = values
	c.mu.Unlock()
	return rows.Err()
}

// with returns the values with what a transaction adds to them, as a map and as
// the table keeps it.
func (c *counters) with(deltas map[string]int64, now time.Time) (map[string]int64, []byte, error) {
	c.mu.Lock()
	before := c.values // which are replaced, and never changed
	c.mu.Unlock()
	next := maps.Clone(before)
	for name, delta := range deltas {
		if delta != 0 {
			next[name] += delta
		}
		if _, known := before[name]; !known && strings.HasPrefix(name, groupRecent) { // a new hour: the oldest goes
			maps.DeleteFunc(next, func(name string, _ int64) bool { return strings.HasPrefix(name, groupRecent) && !isRecent(name, now) })
		}
	}
	counts, err := json.Marshal(next)
	return next, counts, err
}

// committed takes over the values of a transaction of so many writes.
func (c *counters) committed(values map[string]int64, writes int, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if values != nil {
		c.values = values
	}
	c.commits.Count++
	c.commits.Writes += int64(writes)
	c.commits.Time += took
}

// failed counts a transaction that was rolled back.
func (c *counters) failed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.commits.Failed++
}

func (c *counters) value(name string) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.values[name]
}

// members returns the names in a group, without the group.
func (c *counters) members(group string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var names []string
	for name := range c.values {
		if member, ok := strings.CutPrefix(name, group); ok {
			names = append(names, member)
		}
	}
	return names
}

// countOutcome counts work that ended. counted says whether its task is Config.Counted.
func countOutcome(count func(name string, delta int64), r *tandem.Request, o *Outcome, counted bool) {
	count(endedCounter(o.Status()), 1)
	if o.ErrorCode != "" {
		count(failureCounter(o.ErrorCode), 1)
	}
	if counted && o.ErrorCode == "" {
		count(r.Task+memberEnded, 1)
	}
	if o.StartedAt.IsZero() {
		return
	}
	count(groupWorkCount+string(r.Mode), 1)
	count(groupWorkTime+string(r.Mode), o.Processing.Microseconds())
	if counted {
		count(r.Task+memberWork, 1)
		count(r.Task+memberTime, o.Processing.Microseconds())
	}
}

// stats sorts the counters into the groups of Stats. counted is Config.Counted.
func (c *counters) stats(now time.Time, counted string) Stats {
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
