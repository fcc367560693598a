package proxy

import (
	"sync"
	"time"

	"podseal.io/podseal/internal/identity"
)

// tunnels are the idle tunnels to servers. The one that was used last is used next,
// so that those which aren't needed come to their end. The zero value is ready.
type tunnels struct {
	mu     sync.Mutex
	idle   map[tunnelKey][]*tunnel // the last is the one that was used last
	count  int
	closed bool
	timer  *time.Timer // of the next sweep; nil while there is none
}

// take returns an idle tunnel that can be used, or nil. It is then the caller's.
func (s *tunnels) take(key tunnelKey, current *identity.Snapshot) *tunnel {
	for {
		t := s.pop(key)
		if t == nil || t.usable(current) {
			return t
		}
		_ = t.raw.Close() // it may have been closed by the peer
	}
}

func (t *tunnel) usable(current *identity.Snapshot) bool { return t.fresh(current) && t.tls.Quiet() }

func (s *tunnels) pop(key tunnelKey) *tunnel {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.idle[key]
	if len(all) == 0 {
		return nil
	}
	t := all[len(all)-1]
	all[len(all)-1] = nil
	s.set(key, all[:len(all)-1])
	return t
}

// set replaces those of a key by fewer. Callers hold mu.
func (s *tunnels) set(key tunnelKey, all []*tunnel) {
	s.count += len(all) - len(s.idle[key])
	if len(all) == 0 {
		delete(s.idle, key)
		return
	}
	s.idle[key] = all
}

// room reports whether one more would be kept.
func (s *tunnels) room(key tunnelKey) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.roomFor(key)
}

// roomFor is room. Callers hold mu.
func (s *tunnels) roomFor(key tunnelKey) bool {
	return !s.closed && s.count < tunnelsAll && len(s.idle[key]) < tunnelsPeer
}

// put keeps an idle tunnel, or closes it when there are too many. current is asked
// for what is in force at each sweep.
func (s *tunnels) put(t *tunnel, current func() *identity.Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.roomFor(t.key) {
		_ = t.raw.Close() // it is of no more use
		return
	}
	if s.idle == nil {
		s.idle = map[tunnelKey][]*tunnel{}
	}
	t.idle = time.Now()
	s.idle[t.key] = append(s.idle[t.key], t)
	s.count++
	if s.timer == nil {
		s.timer = time.AfterFunc(tunnelSweep, func() { s.sweep(current) })
	}
}

// sweep closes what is too old, out of date or no longer wanted by the server.
func (s *tunnels) sweep(current func() *identity.Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	now, snap := time.Now(), current()
	for key, all := range s.idle {
		kept := all[:0]
		for _, t := range all {
			if now.Sub(t.idle) < tunnelIdle && t.usable(snap) {
				kept = append(kept, t)
			} else {
				_ = t.raw.Close() // it may have been closed by the peer
			}
		}
		clear(all[len(kept):])
		s.count -= len(all) - len(kept)
		if len(kept) == 0 {
			delete(s.idle, key)
		} else {
			s.idle[key] = kept
		}
	}
	if s.timer = nil; s.count > 0 {
		s.timer = time.AfterFunc(tunnelSweep, func() { s.sweep(current) })
	}
}

// close closes all; from then on none is kept.
func (s *tunnels) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	for key, all := range s.idle {
		for _, t := range all {
			_ = t.raw.Close() // it may have been closed by the peer
		}
		delete(s.idle, key)
	}
	s.count = 0
}

func (s *tunnels) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

// each calls visit for each, in no order.
func (s *tunnels) each(visit func(*tunnel)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, all := range s.idle {
		for _, t := range all {
			visit(t)
		}
	}
}

// reopen carries an application's connection over an idle tunnel, if there is one
// that can be used. What it has read of the application is counted if it was sent,
// and otherwise kept for the connection that is made instead.
func (p *proxy) reopen(c *conn, to *routing) *tunnel {
	t := p.tunnels.take(keyOfTunnel(to), p.creds.current.Load())
	if t == nil {
		return nil
	}
	sent, unsent, err := t.tls.Open(c.client)
	if err != nil {
		_ = t.raw.Close() // the peer has closed it just now
		c.first = unsent
		return nil
	}
	c.received.Add(int64(sent))
	t.streams.Add(1)
	return t
}

// mayKeep reports whether a tunnel to a server is kept when its stream ends now.
func (p *proxy) mayKeep(t *tunnel) bool {
	return !p.draining.Load() && t.fresh(p.creds.current.Load()) && p.tunnels.room(t.key)
}
