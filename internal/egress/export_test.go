package egress

import "time"

// RetryAfter reads the header of that name.
func RetryAfter(value string, now time.Time) time.Duration { return retryAfter(value, now) }
