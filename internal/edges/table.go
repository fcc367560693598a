package edges

import (
	"container/list"
	"maps"
	"sync"
	"time"
)

// MaxEdges is how many edges a proxy tells apart.
const MaxEdges = 2048

// scan is how many entries are looked at for one that may be folded.
const scan = 16

// Table counts the edges of one proxy. It may be used by many goroutines.
type Table struct {
	limit int

	mu      sync.Mutex
	entries map[Key]*entry
	last    *entry     // found last: who calls, calls again; nil for none
	used    *list.List // of *entry without a rest, last used first
	nextID  uint32
	cursor  *Cursor // whom changed and gone are kept for; nil for nobody
	changed map[*entry]struct{}
	gone    []uint32
}

// entry is one edge. The table's mu guards it.
type entry struct {
	edge    Edge
	at      *list.Element // nil for a rest
	changed bool          // it is in the table's changed
}

// Flow is one connection's part in an edge. The zero Flow is no part yet. It is for
// one goroutine at a time.
type Flow struct {
	entry                    *entry
	sent, received, requests int64
}

// Cursor is one reader's place in the changes of a table.
type Cursor struct{ began bool }

// NewTable returns a table of at most limit edges and their rests.
func NewTable(limit int) *Table {
	return &Table{limit: limit, entries: map[Key]*entry{}, used: list.New(), changed: map[*entry]struct{}{}}
}

// Open counts a connection that has begun to carry bytes, with those of it so
// far. The flow must be zero.
func (t *Table) Open(f *Flow, key Key, about About, at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open(f, key, about, at)
}

func (t *Table) open(f *Flow, key Key, about About, at time.Time) {
	f.entry = t.find(key, at)
	f.entry.edge.About = about
	f.entry.edge.Counts.Connections++
	f.entry.edge.Open++
	t.touch(f.entry, at)
}

// Move counts what the connection has carried since it was last asked about; the
// arguments are its totals. It reports whether that is anything.
func (t *Table) Move(f *Flow, sent, received, requests int64, at time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.move(f, sent, received, requests, at)
}

func (t *Table) move(f *Flow, sent, received, requests int64, at time.Time) bool {
	if f.sent == sent && f.received == received && f.requests == requests {
		return false
	}
	c := &f.entry.edge.Counts
	c.BytesSent += uint64(sent - f.sent)
	c.BytesReceived += uint64(received - f.received)
	c.Requests += uint64(requests - f.requests)
	f.sent, f.received, f.requests = sent, received, requests
	t.touch(f.entry, at)
	return true
}

// Close counts what is left of a connection and, if it was refused or cut, why.
func (t *Table) Close(f *Flow, sent, received, requests int64, reason string, at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.move(f, sent, received, requests, at)
	if reason != "" {
		f.entry.edge.Counts.refuse(reason, 1)
	}
	f.entry.edge.Open--
	t.touch(f.entry, at)
	f.entry = nil
}

// Whole counts a connection that began and is over before there was a flow of it.
func (t *Table) Whole(key Key, about About, began time.Time, sent, received, requests int64, reason string, at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.find(key, began)
	e.edge.About = about
	c := &e.edge.Counts
	c.Connections++
	c.BytesSent += uint64(sent)
	c.BytesReceived += uint64(received)
	c.Requests += uint64(requests)
	if reason != "" {
		c.refuse(reason, 1)
	}
	t.touch(e, at)
}

// Refuse counts a connection that was refused before it carried anything.
func (t *Table) Refuse(key Key, about About, reason string, at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.find(key, at)
	e.edge.About = about
	e.edge.Counts.refuse(reason, 1)
	t.touch(e, at)
}

// Opened reports whether the flow is part of an edge.
func (f *Flow) Opened() bool { return f.entry != nil }

// find finds or makes the entry of a key. When there is no room, and none that
// could be made, it is the rest. Callers hold mu.
func (t *Table) find(key Key, at time.Time) *entry {
	if t.last != nil && t.last.edge.Key == key {
		return t.last
	}
	if e, ok := t.entries[key]; ok {
		t.last = e
		return e
	}
	if !key.Rest && t.used.Len() >= t.limit && !t.makeRoom(at) {
		rest := t.find(restOf(key), at)
		rest.edge.Folded++
		return rest
	}
	t.nextID++
	e := &entry{edge: Edge{ID: t.nextID, Key: key, First: at, Last: at}}
	if !key.Rest {
		e.at = t.used.PushFront(e)
	}
	t.entries[key] = e
	return e
}

func restOf(key Key) Key { return Key{Direction: key.Direction, Security: key.Security, Rest: true} }

// makeRoom folds the entry that was unused the longest, of those that nothing
// holds open. It reports whether there was one. Callers hold mu.
func (t *Table) makeRoom(at time.Time) bool {
	el := t.used.Back()
	for range scan {
		if el == nil {
			return false
		}
		e, ok := el.Value.(*entry)
		if ok && e.edge.Open == 0 {
			t.fold(e, at)
			return true
		}
		el = el.Prev()
	}
	return false
}

func (t *Table) fold(e *entry, at time.Time) {
	rest := t.find(restOf(e.edge.Key), at)
	rest.edge.Counts.add(e.edge.Counts)
	rest.edge.Folded++
	if e.edge.First.Before(rest.edge.First) {
		rest.edge.First = e.edge.First
	}
	t.used.Remove(e.at)
	delete(t.entries, e.edge.Key)
	if t.last == e {
		t.last = nil
	}
	delete(t.changed, e)
	t.touch(rest, e.edge.Last)
	if t.cursor == nil {
		return
	}
	if t.gone = append(t.gone, e.edge.ID); len(t.gone) > t.limit {
		t.unfollow() // a reader that doesn't come costs no memory
	}
}

// touch notes that an entry was used. Callers hold mu.
func (t *Table) touch(e *entry, at time.Time) {
	if at.After(e.edge.Last) {
		e.edge.Last = at
	}
	if e.at != nil {
		t.used.MoveToFront(e.at)
	}
	if t.cursor != nil && !e.changed {
		e.changed, t.changed[e] = true, struct{}{}
	}
}

// Follow returns a cursor that has been told nothing yet. A table has one reader:
// the cursor that it had before is void.
func (t *Table) Follow() *Cursor {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unfollow()
	t.cursor = &Cursor{}
	for _, e := range t.entries {
		e.changed, t.changed[e] = true, struct{}{}
	}
	return t.cursor
}

// Unfollow says that nobody reads at c any more.
func (t *Table) Unfollow(c *Cursor) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cursor == c {
		t.unfollow()
	}
}

func (t *Table) unfollow() {
	t.cursor, t.gone = nil, nil
	for e := range t.changed {
		e.changed = false
	}
	clear(t.changed)
}

// Delta returns at most limit edges that c has not been told of as they are now;
// call it again while it returns some. It reports false when c is void: the
// reader has to begin anew.
func (t *Table) Delta(c *Cursor, limit int) (Delta, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cursor != c {
		return Delta{}, false
	}
	d := Delta{Forgotten: t.gone}
	t.gone = nil
	for e := range t.changed {
		if len(d.Edges) == limit {
			return d, true
		}
		d.Edges = append(d.Edges, e.copy())
		e.changed = false
		delete(t.changed, e)
	}
	d.Complete, c.began = !c.began, true
	return d, true
}

// All returns every edge, in no order.
func (t *Table) All() []Edge {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]Edge, 0, len(t.entries))
	for _, e := range t.entries {
		all = append(all, e.copy())
	}
	return all
}

func (e *entry) copy() Edge {
	out := e.edge
	out.Counts.Refusals = maps.Clone(out.Counts.Refusals)
	return out
}

// Len returns how many edges are told apart.
func (t *Table) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.used.Len()
}
