package egress

import (
	"slices"
	"time"
)

// Judge is what the dialer decides about host:port before it looks anything up.
func (d *Dialer) Judge(hostPort string) error {
	_, _, err := d.judge(hostPort)
	return err
}

// Remembered is how many URLs are.
func (c *Client) Remembered() int {
	c.good.mu.Lock()
	defer c.good.mu.Unlock()
	return len(c.good.targets)
}

// LocalFault says the local fault behind an error; "": none.
func LocalFault(err error) string { return localFault(err) }

// TurnWait is how long a key whose turn it is to probe is waited for.
const TurnWait = turnWait

// HeldUntil is when a call to the receiver may be made, as far as can be told: the zero time means now.
func (c *Client) HeldUntil(r Receiver) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	d, known := c.destinations.Peek(r.Site)
	if !known {
		return time.Time{}
	}
	if held, why := d.heldBy(c.circuitsLocked(d, r), r); why != nil {
		return held.until(d, r, why)
	}
	if d.inFlight >= c.cfg.HostConcurrency {
		return time.Now().Add(d.waitLocked(c.cfg.HostConcurrency))
	}
	return time.Time{}
}

// Blocks returns every block that a strict [Policy] refuses by table. Blocks may lie inside others.
func Blocks() []Block {
	return slices.Concat(metadataBlocks, neverBlocks, specialBlocks4, specialBlocks6)
}
