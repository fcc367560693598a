package proxy

import (
	"context"
	"slices"
	"sync"
	"time"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/tlsconn"
)

// tunnels are those to servers. The zero value is ready.
type tunnels struct {
	mu      sync.Mutex
	usable  map[tunnelKey][]*tunnel
	retired map[*tunnel]struct{} // carry what they carry, and nothing new
	making  map[tunnelKey]*making
	alone   map[tunnelKey]struct{} // where the last handshake has found a peer that takes no streams
	closed  bool
	timer   *time.Timer // of the next sweep; nil while there is none
}

// making is a handshake that others wait for. Its owner must end it with made.
type making struct {
	key  tunnelKey
	done chan struct{}
}

// take returns a tunnel that can be used. If there is none, the caller makes it: he
// gets the making that others wait for, unless it is not known whether waiting pays.
// While another makes one, it waits for that.
func (s *tunnels) take(ctx context.Context, key tunnelKey, current *identity.Snapshot) (*tunnel, *making) {
	t, m, other := s.look(key, current)
	if other == nil {
		return t, m
	}
	timer := time.NewTimer(tunnelJoin)
	defer timer.Stop()
	select {
	case <-other.done:
		return s.ready(key, current), nil // or each for himself
	case <-timer.C:
	case <-ctx.Done():
	}
	return nil, nil
}

// ready returns a tunnel that can be used now, if there is one.
func (s *tunnels) ready(key tunnelKey, current *identity.Snapshot) *tunnel {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	return s.pick(key, current)
}

func (s *tunnels) look(key tunnelKey, current *identity.Snapshot) (t *tunnel, ours, others *making) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, nil
	}
	if t = s.pick(key, current); t != nil {
		return t, nil, nil
	}
	if m := s.making[key]; m != nil {
		return nil, nil, m
	}
	if _, alone := s.alone[key]; alone {
		return nil, nil, nil
	}
	m := &making{key: key, done: make(chan struct{})}
	if s.making == nil {
		s.making = map[tunnelKey]*making{}
	}
	s.making[key] = m
	return nil, m, nil
}

// pick returns the tunnel that carries least and no bulk, or nil if another one should
// be made. Callers hold mu.
func (s *tunnels) pick(key tunnelKey, current *identity.Snapshot) *tunnel {
	var best *tunnel
	least := 0
	all := s.usable[key]
	for _, t := range slices.Clone(all) {
		if !t.usable(current) {
			s.retire(t)
			continue
		}
		n := t.open()
		if t.mux.Bulk() {
			n += tunnelShare
		}
		if best == nil || n < least {
			best, least = t, n
		}
	}
	if least >= tunnelShare && len(s.usable[key]) < tunnelsPeer {
		return nil
	}
	return best
}

func (t *tunnel) usable(current *identity.Snapshot) bool { return t.fresh(current) && !t.mux.Left() }

// retire has a tunnel carry nothing new; without streams it is closed. Callers hold mu.
func (s *tunnels) retire(t *tunnel) {
	if all := slices.DeleteFunc(s.usable[t.key], func(o *tunnel) bool { return o == t }); len(all) > 0 {
		s.usable[t.key] = all
	} else {
		delete(s.usable, t.key)
	}
	t.mux.Leave()
	if s.retired == nil {
		s.retired = map[*tunnel]struct{}{}
	}
	s.retired[t] = struct{}{}
	t.finish()
}

// close ends a tunnel, once, as Mux.Close does it the first time.
func (t *tunnel) close() {
	if t.closed.CompareAndSwap(false, true) {
		t.mux.Close()
	}
}

// finish closes a tunnel that carries nothing, and after a while at any price. The
// caller holds the lock of the tunnels.
func (t *tunnel) finish() {
	switch now := time.Now(); {
	case t.open() > 0:
	case t.closing.IsZero():
		t.closing = now
		t.close()
	case now.Sub(t.closing) > tunnelLeave:
		t.mux.Close()
	}
}

// made ends a making, with the tunnel that has come of it, or with nil. alone says that
// the peer takes no streams. It does nothing for none, or a second time.
func (s *tunnels) made(m *making, t *tunnel, alone bool, current func() *identity.Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t != nil {
		s.add(t, current)
	}
	if m == nil || s.making[m.key] != m {
		return
	}
	delete(s.making, m.key)
	close(m.done)
	switch {
	case !alone:
		delete(s.alone, m.key)
	case s.alone == nil || len(s.alone) >= tunnelsAll:
		s.alone = map[tunnelKey]struct{}{m.key: {}}
	default:
		s.alone[m.key] = struct{}{}
	}
}

// add takes in a tunnel. current is asked for what is in force at each sweep. Callers
// hold mu.
func (s *tunnels) add(t *tunnel, current func() *identity.Snapshot) {
	if s.usable == nil {
		s.usable = map[tunnelKey][]*tunnel{}
	}
	s.usable[t.key] = append(s.usable[t.key], t)
	if s.closed {
		s.retire(t)
	}
	if s.timer == nil {
		s.timer = time.AfterFunc(tunnelSweep, func() { s.sweep(current) })
	}
}

// gone forgets a tunnel that has ended.
func (s *tunnels) gone(t *tunnel) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retire(t)
	delete(s.retired, t)
}

// sweep closes what carries nothing and is too old, out of date, too much or no longer
// wanted by the server.
func (s *tunnels) sweep(current func() *identity.Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, snap, idle := time.Now(), current(), 0
	for _, t := range s.list(true) {
		t.mux.Expire(now.Add(-tunnelHalf))
	}
	for _, t := range s.list(false) {
		switch resting := t.resting(now, 0); {
		case !t.usable(snap), t.resting(now, tunnelIdle), resting && idle >= tunnelsAll:
			s.retire(t)
		case resting:
			idle++
		}
	}
	for t := range s.retired {
		t.finish()
	}
	if s.timer = nil; len(s.usable)+len(s.retired) > 0 {
		s.timer = time.AfterFunc(tunnelSweep, func() { s.sweep(current) })
	}
}

// close retires all; from then on none is kept.
func (s *tunnels) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, t := range s.list(false) {
		s.retire(t)
	}
}

// end closes all, with what they carry.
func (s *tunnels) end() {
	s.close()
	for _, t := range s.all() {
		t.close()
	}
}

// list is the usable ones, and the retired ones if they are asked for. Callers hold mu.
func (s *tunnels) list(retired bool) []*tunnel {
	var all []*tunnel
	for _, some := range s.usable {
		all = append(all, some...)
	}
	if retired {
		for t := range s.retired {
			all = append(all, t)
		}
	}
	return all
}

func (s *tunnels) all() []*tunnel {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.list(true)
}

// idle is how many carry nothing.
func (s *tunnels) idle() int { return countIdle(s.all()) }

func countIdle(all []*tunnel) int {
	n := 0
	for _, t := range all {
		if t.open() == 0 {
			n++
		}
	}
	return n
}

// join carries an application's connection over a tunnel, if there is one that can be
// used. What it has read of the application is counted if it was sent, and otherwise
// kept for the connection that is made instead.
func (p *proxy) join(ctx context.Context, c *conn, to *routing) *tunnel {
	t, m := p.tunnels.take(ctx, keyOfTunnel(to), p.creds.current.Load())
	if m != nil {
		c.making = m
		c.atEnd = append(c.atEnd, func() { p.made(c, nil, false) })
	}
	if t == nil {
		return nil
	}
	s, sent, unsent, err := t.mux.Open(c.client)
	if err != nil {
		c.first = unsent // the peer has closed it just now
		return nil
	}
	c.received.Add(int64(sent))
	c.reused = true
	c.over(t, s)
	return t
}

// made tells those who wait for the handshake of c what has come of it.
func (p *proxy) made(c *conn, t *tunnel, alone bool) {
	p.tunnels.made(c.making, t, alone, p.creds.current.Load)
	c.making = nil
}

// secured is a connection to or from a peer that has proved who it is: TLS, or a
// stream of one that carries many.
type secured interface {
	stream
	Reset()
}

var (
	_ secured = (*tlsconn.Conn)(nil)
	_ secured = (*tlsconn.Stream)(nil)
)
