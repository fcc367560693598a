package ca

import (
	"log/slog"
	"time"

	"podseal.io/podseal/internal/identity"
)

// Renewal ahead of time: a certificate that peers no longer accept is replaced
// within earlyJitter, so that all proxies of a mesh don't ask at once. When that
// was of no use it is tried again after firstEarlyPause and then ever slower, so
// that an authority that goes on issuing such certificates isn't worn out.
const (
	earlyJitter     = 2 * time.Second
	firstEarlyPause = 5 * time.Second
	maxEarlyPause   = 10 * time.Minute
)

// Trust tells the client which roots the control plane publishes. If they don't
// verify the certificate that the client holds, peers no longer accept it, and
// Run renews it at once instead of at half of its life. It may be called at any
// time, also before Run, and returns at once.
func (c *Client) Trust(published *identity.Bundle) {
	c.mu.Lock()
	c.published = published
	c.mu.Unlock()
	select {
	case c.told <- struct{}{}:
	default: // Run has yet to look at the one before
	}
}

// refused says why the published roots don't verify a certificate, nil if they
// do or nothing was published.
func (c *Client) refused(cred *identity.Credential, now time.Time) error {
	c.mu.Lock()
	published := c.published
	c.mu.Unlock()
	if cred == nil || published == nil {
		return nil
	}
	return verifyOwn(cred, published, now)
}

// early paces renewals ahead of time.
type early struct {
	at    time.Time // when one is due; zero if none is
	last  time.Time // when the last one began
	count int       // how many there were without a long pause
}

// plan says when to renew a certificate that would be renewed at next.
func (e *early) plan(c *Client, cred *identity.Credential, next time.Time) time.Time {
	now := c.cfg.Now()
	err := c.refused(cred, now)
	if err == nil {
		e.at = time.Time{}
		return next
	}
	if e.at.IsZero() {
		e.at = e.soonest(now, c.cfg.Rand())
		c.cfg.Log.Warn("certificate is not accepted by the roots that the control plane publishes, renewing ahead of time",
			slog.String("error", err.Error()), slog.Duration("renew_in", e.at.Sub(now)))
	}
	if e.at.Before(next) {
		return e.at
	}
	return next
}

// soonest is when the next renewal ahead of time may begin.
func (e *early) soonest(now time.Time, chance float64) time.Time {
	at := now.Add(time.Duration(chance * float64(earlyJitter)))
	if e.count == 0 || now.Sub(e.last) > 2*maxEarlyPause {
		e.count = 0
		return at
	}
	pause := maxEarlyPause
	if shift := min(e.count-1, 20); firstEarlyPause<<shift < maxEarlyPause {
		pause = firstEarlyPause << shift
	}
	if paced := e.last.Add(pause + time.Duration(chance*float64(pause)/5)); paced.After(at) {
		return paced
	}
	return at
}

// begin notes that a certificate is asked for now.
func (e *early) begin(now time.Time) {
	if !e.at.IsZero() && !now.Before(e.at) {
		e.last, e.at = now, time.Time{}
		e.count++
	}
}
