package proof

import (
	"fmt"
	"net/netip"
	"time"
)

const defaultMaxFlows = 1 << 16

// tracker sorts segments into connections.
type tracker struct {
	needles [][]byte
	limit   int
	open    map[pair]*connection
	all     []*connection
}

// pair names a connection, whoever opened it: low is the lesser address.
type pair struct{ low, high netip.AddrPort }

// connection is what is known of one of them.
type connection struct {
	flow     Flow
	certain  bool // the client is known, not guessed
	isn      uint32
	opened   bool // the client's SYN was seen, with isn
	from, to side // the client and the server
}

type side struct {
	stream
	synced bool // its SYN was seen
}

func newTracker(o Options) *tracker {
	t := &tracker{limit: o.MaxFlows, open: map[pair]*connection{}}
	if t.limit <= 0 {
		t.limit = defaultMaxFlows
	}
	for _, n := range o.Needles {
		t.needles = append(t.needles, []byte(n))
	}
	return t
}

func (t *tracker) add(at time.Time, s segment) error {
	key := pair{s.src, s.dst}
	if s.dst.Compare(s.src) < 0 {
		key = pair{s.dst, s.src}
	}
	c := t.open[key]
	if c == nil || c.replacedBy(s) {
		if len(t.all) >= t.limit {
			return fmt.Errorf("%w: more than %d", ErrTooMany, t.limit)
		}
		c = t.connect(at, s)
		t.open[key] = c
	}
	c.add(at, s)
	return nil
}

// connect begins a connection with its first captured segment.
func (t *tracker) connect(at time.Time, s segment) *connection {
	c := &connection{flow: Flow{Client: s.src, Server: s.dst, Start: at}}
	// without a SYN the lower port is taken for the server's
	if s.syn && s.ack || !s.syn && s.src.Port() < s.dst.Port() {
		c.flow.Client, c.flow.Server = s.dst, s.src
	}
	c.from.content, c.to.content = newContent(t.needles), newContent(t.needles)
	t.all = append(t.all, c)
	return c
}

// replacedBy reports whether a segment opens another connection between the same
// ports.
func (c *connection) replacedBy(s segment) bool {
	return s.syn && !s.ack && c.opened && s.seq != c.isn
}

func (c *connection) add(at time.Time, s segment) {
	if at.After(c.flow.End) {
		c.flow.End = at
	}
	if s.syn && !c.certain {
		c.certain = true
		client := s.src
		if s.ack {
			client = s.dst
		}
		if client != c.flow.Client {
			c.flow.Client, c.flow.Server = c.flow.Server, c.flow.Client
			c.from, c.to = c.to, c.from
		}
	}
	sender := &c.from
	if s.src == c.flow.Server {
		sender = &c.to
	}
	if s.syn {
		sender.synced = true
		sender.begin(s.seq + 1)
		if !s.ack {
			c.opened, c.isn = true, s.seq
		}
		s.seq++ // a SYN takes a number; data may come with it (RFC 7413)
	}
	if s.rst {
		c.flow.Reset = true
		if c.flow.ResetBy == "" {
			c.flow.ResetBy = "client"
			if sender == &c.to {
				c.flow.ResetBy = "server"
			}
		}
		return // what a reset carries is no part of the stream
	}
	sender.add(s.seq, s.payload, s.missing)
}

// finish ends all connections and returns what they were.
func (t *tracker) finish() []Flow {
	flows := make([]Flow, 0, len(t.all))
	for _, c := range t.all {
		c.flow.Opened = c.from.synced && c.to.synced
		for _, s := range []*side{&c.from, &c.to} {
			s.flush()
			s.content.finish()
		}
		c.flow.describe(&c.from.content, &c.to.content)
		flows = append(flows, c.flow)
	}
	return flows
}
