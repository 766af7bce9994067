package keys

import "time"

// ShiftClock moves the clock of the machine as the keys see it.
func (k *Keys) ShiftClock(by time.Duration) {
	k.clock = func() time.Time { return time.Now().Round(0).Add(by) }
}
