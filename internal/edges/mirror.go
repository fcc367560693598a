package edges

import (
	"errors"
	"unique"
)

// Mirror is the control plane's copy of one proxy's table. Its user locks.
type Mirror struct {
	edges    map[uint32]Edge
	bytes    int  // of texts
	Complete bool // all that the proxy knew has come
}

// maxMirror bounds the texts of one mirror, in bytes: three times what the
// largest table of a proxy of ours has.
const maxMirror = 2 << 20

// NewMirror returns one that nothing has been said of yet.
func NewMirror() *Mirror { return &Mirror{edges: map[uint32]Edge{}} }

var errTooMany = errors.New("more edges than a proxy tells apart")

// Key finds the key of an edge.
func (m *Mirror) Key(id uint32) (Key, bool) { e, ok := m.edges[id]; return e.Key, ok }

// Apply makes the mirror equal to the table. It refuses a delta that would make
// it larger than a table can be, and is then of no use any more.
func (m *Mirror) Apply(d Delta) error {
	for _, id := range d.Forgotten {
		m.drop(id)
	}
	for i := range d.Edges {
		e := d.Edges[i]
		if old, had := m.edges[e.ID]; had {
			e.Key, e.About = old.Key, intern(e.About, old.About)
		} else {
			e.Key, e.About = internKey(e.Key), intern(e.About, About{})
		}
		m.drop(e.ID)
		m.edges[e.ID] = e
		m.bytes += e.texts()
	}
	if len(m.edges) > MaxEdges+rests || m.bytes > maxMirror {
		return errTooMany
	}
	m.Complete = m.Complete || d.Complete
	return nil
}

func (m *Mirror) drop(id uint32) {
	if e, had := m.edges[id]; had {
		m.bytes -= e.texts()
		delete(m.edges, id)
	}
}

// texts is the length of all texts of an edge.
func (e *Edge) texts() int {
	n := len(e.Key.Protocol) + len(e.Key.Identity) + len(e.Key.Workload) + len(e.Key.TLS.Version) + len(e.Key.TLS.Group) + len(e.Key.TLS.Cipher) +
		len(e.About.Pod) + len(e.About.Service) + len(e.About.OwnIdentity) + len(e.About.OwnSerial) + len(e.About.PeerSerial)
	for reason := range e.Counts.Refusals {
		n += len(reason)
	}
	return n
}

// rests is how many rests a table can have: one for each direction and security.
const rests = 8

// Len returns how many edges there are.
func (m *Mirror) Len() int { return len(m.edges) }

// All returns the edges, in no order.
func (m *Mirror) All() []Edge {
	all := make([]Edge, 0, len(m.edges))
	for _, e := range m.edges {
		all = append(all, e)
	}
	return all
}

// Texts repeat in every proxy's report: one copy of each is enough.

func shared(s string) string { return unique.Make(s).Value() }

func internKey(k Key) Key {
	k.Protocol, k.Identity, k.Workload = shared(k.Protocol), shared(k.Identity), shared(k.Workload)
	k.TLS = TLS{shared(k.TLS.Version), shared(k.TLS.Group), shared(k.TLS.Cipher)}
	return k
}

func intern(a, old About) About {
	for _, p := range []struct {
		now *string
		old string
	}{{&a.Pod, old.Pod}, {&a.Service, old.Service}, {&a.OwnIdentity, old.OwnIdentity}, {&a.OwnSerial, old.OwnSerial}, {&a.PeerSerial, old.PeerSerial}} {
		if *p.now == p.old {
			*p.now = p.old
		} else {
			*p.now = shared(*p.now)
		}
	}
	return a
}
