//go:build !unix

package load

import "time"

// usage is unknown on this platform.
func usage() (cpu time.Duration, memory int64) { return 0, 0 }
