package server

import "time"

// Seconds is a time as answers tell it.
func Seconds(d time.Duration) float64 { return seconds(d) }
