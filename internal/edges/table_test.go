package edges

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	reportv1 "podseal.io/podseal/api/report/v1"
)

var (
	noon      = time.UnixMilli(1_800_000_000_000)
	sameAddrs = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
)

func keyOf(i int) Key {
	k := Key{Direction: Inbound, Security: MutualTLS, Protocol: "tcp", Port: 8080, TLS: TLS{"TLS 1.3", "X25519MLKEM768", "TLS_AES_128_GCM_SHA256"}}
	k.Identity = fmt.Sprintf("cluster.local/ns/shop-%d/sa/web-%d", i%10, i)
	k.Workload = fmt.Sprintf("shop-%d/web-%d", i%10, i)
	return k
}

func aboutOf(i int) About {
	return About{
		Pod: fmt.Sprintf("shop-%d/web-%d-7d4b9c6f5-x%04d", i%10, i, i), Address: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}),
		Service: "web.shop.svc.cluster.local:80", OwnIdentity: "cluster.local/ns/shop/sa/api",
		OwnSerial: strings.Repeat("a", 32), PeerSerial: fmt.Sprintf("%032x", i),
	}
}

func find(t *testing.T, all []Edge, key Key) Edge {
	t.Helper()
	for _, e := range all {
		if e.Key == key {
			return e
		}
	}
	t.Fatalf("no edge %+v among %d", key, len(all))
	return Edge{}
}

func TestTableCounts(t *testing.T) {
	table := NewTable(10)
	var f Flow
	if f.Opened() {
		t.Error("a zero flow is open")
	}
	table.Open(&f, keyOf(1), aboutOf(1), noon)
	if !table.Move(&f, 10, 20, 1, noon.Add(time.Second)) || table.Move(&f, 10, 20, 1, noon.Add(2*time.Second)) {
		t.Error("Move doesn't say whether anything moved")
	}
	got := find(t, table.All(), keyOf(1))
	want := Edge{ID: 1, Key: keyOf(1), About: aboutOf(1), Open: 1, First: noon, Last: noon.Add(time.Second), Counts: Counts{Connections: 1, Requests: 1, BytesSent: 10, BytesReceived: 20}}
	if diff := cmp.Diff(want, got, sameAddrs); diff != "" {
		t.Error(diff)
	}
	table.Close(&f, 11, 22, 2, "policy_changed", noon.Add(3*time.Second))
	table.Refuse(keyOf(1), aboutOf(2), "plaintext_refused", noon.Add(4*time.Second))
	got = find(t, table.All(), keyOf(1))
	want.Open, want.Last, want.About = 0, noon.Add(4*time.Second), aboutOf(2)
	want.Counts = Counts{Connections: 1, Requests: 2, BytesSent: 11, BytesReceived: 22, Refusals: map[string]uint64{"policy_changed": 1, "plaintext_refused": 1}}
	if diff := cmp.Diff(want, got, sameAddrs); diff != "" {
		t.Error(diff)
	}
	if f.Opened() {
		t.Error("a closed flow is open")
	}
}

// A connection counts the same whether or not anybody looked while it was open.
func TestTableWhole(t *testing.T) {
	began, over := noon, noon.Add(time.Second)
	for _, reason := range []string{"", "policy_changed"} {
		seen, unseen := NewTable(10), NewTable(10)
		var f Flow
		seen.Open(&f, keyOf(1), aboutOf(1), began)
		seen.Close(&f, 11, 22, 2, reason, over)
		unseen.Whole(keyOf(1), aboutOf(1), began, 11, 22, 2, reason, over)
		if diff := cmp.Diff(seen.All(), unseen.All(), sameAddrs); diff != "" {
			t.Error(diff)
		}
	}
}

// A table that is full loses names and no counts, and says how many.
func TestTableOverflow(t *testing.T) {
	table := NewTable(4)
	const n = 50
	for i := range n {
		var f Flow
		table.Open(&f, keyOf(i), aboutOf(i), noon.Add(time.Duration(i)*time.Second))
		table.Close(&f, 1, 2, 3, "", noon.Add(time.Duration(i)*time.Second))
	}
	if table.Len() != 4 {
		t.Errorf("%d edges are told apart, want 4", table.Len())
	}
	var sum Counts
	for _, e := range table.All() {
		sum.add(e.Counts)
	}
	if want := (Counts{Connections: n, BytesSent: n, BytesReceived: 2 * n, Requests: 3 * n}); !cmp.Equal(sum, want) {
		t.Errorf("the sum is %+v", sum)
	}
	rest := find(t, table.All(), restOf(keyOf(0)))
	if rest.Folded != n-4 || !rest.First.Equal(noon) || !rest.Last.Equal(noon.Add((n-5)*time.Second)) {
		t.Errorf("the rest is %+v", rest)
	}
	find(t, table.All(), keyOf(n-1)) // the newest stay
}

// What is open is never folded: its counts would go on under no name. New ones
// then go to the rest at once.
func TestTableOverflowOpen(t *testing.T) {
	table := NewTable(2)
	flows := make([]Flow, 4)
	for i := range flows {
		table.Open(&flows[i], keyOf(i), aboutOf(i), noon)
	}
	find(t, table.All(), keyOf(0))
	rest := find(t, table.All(), restOf(keyOf(0)))
	if rest.Open != 2 || rest.Folded != 2 || rest.Counts.Connections != 2 {
		t.Errorf("the rest is %+v", rest)
	}
	for i := range flows {
		table.Close(&flows[i], 5, 5, 0, "", noon)
	}
	if rest = find(t, table.All(), restOf(keyOf(0))); rest.Open != 0 || rest.Counts.BytesSent != 10 {
		t.Errorf("the rest is %+v", rest)
	}
}

// Whatever happens to a table, a mirror that takes every delta is equal to it.
func TestMirrorIsEqual(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 50 {
		table := NewTable(20)
		var mirror *Mirror
		var cursor *Cursor
		var known map[uint32]bool
		flows := map[int]*Flow{}
		now := noon
		sync := func() {
			for {
				d, ok := table.Delta(cursor, 1+rng.IntN(8))
				if !ok {
					t.Fatal("the cursor is void")
				}
				u := ToProto(d, known)
				got, err := ParseUpdate(u, mirror.Key)
				if err != nil {
					t.Fatal(err)
				}
				if err := mirror.Apply(got); err != nil {
					t.Fatal(err)
				}
				if len(d.Edges) == 0 {
					return
				}
			}
		}
		for step := range 300 {
			now = now.Add(time.Second)
			i := rng.IntN(60)
			switch f := flows[i]; {
			case f == nil && rng.IntN(4) == 0:
				table.Refuse(keyOf(i), aboutOf(i), "connect_failed", now)
			case f == nil:
				flows[i] = &Flow{}
				table.Open(flows[i], keyOf(i), aboutOf(i), now)
			case rng.IntN(2) == 0:
				table.Move(f, f.sent+int64(rng.IntN(9)), f.received+1, f.requests, now)
			default:
				table.Close(f, f.sent, f.received, f.requests, "", now)
				delete(flows, i)
			}
			switch {
			case step == 0 || rng.IntN(100) == 0: // the stream broke
				cursor, mirror, known = table.Follow(), NewMirror(), map[uint32]bool{}
			case rng.IntN(5) == 0:
				sync()
			}
		}
		sync()
		if !mirror.Complete {
			t.Error("the mirror doesn't know that it is complete")
		}
		byID := cmp.Transformer("by_id", func(all []Edge) map[uint32]Edge {
			m := map[uint32]Edge{}
			for _, e := range all {
				m[e.ID] = e
			}
			return m
		})
		if diff := cmp.Diff(table.All(), mirror.All(), byID, sameAddrs); diff != "" {
			t.Fatalf("round %d: %s", round, diff)
		}
	}
}

// A reader that doesn't come back costs no memory, and is told to begin anew.
func TestLostReader(t *testing.T) {
	table := NewTable(4)
	c := table.Follow()
	for i := range 100 {
		table.Refuse(keyOf(i), aboutOf(i), "no_endpoint", noon)
	}
	if _, ok := table.Delta(c, 10); ok {
		t.Error("a reader that missed things is not told")
	}
	if len(table.gone) != 0 || len(table.changed) != 0 {
		t.Errorf("%d gone and %d changed are kept for nobody", len(table.gone), len(table.changed))
	}
	c = table.Follow()
	if d, ok := table.Delta(c, 100); !ok || len(d.Edges) != 5 || !d.Complete {
		t.Errorf("a new reader gets %d edges, complete %v, %v", len(d.Edges), d.Complete, ok)
	}
	table.Unfollow(c)
	if _, ok := table.Delta(c, 10); ok {
		t.Error("who left is still told")
	}
}

func TestMirrorIsBounded(t *testing.T) {
	m := NewMirror()
	var err error
	for i := 0; i < 3*MaxEdges && err == nil; i++ {
		err = m.Apply(Delta{Edges: []Edge{{ID: uint32(i + 1), Key: keyOf(i)}}})
	}
	if err == nil || m.Len() > MaxEdges+rests+1 {
		t.Errorf("%d edges were taken: %v", m.Len(), err)
	}
	m, err = NewMirror(), nil
	for i := 0; i < MaxEdges && err == nil; i++ {
		e := Edge{ID: uint32(i + 1), Key: keyOf(i), About: About{Pod: strings.Repeat("p", maxText), Service: strings.Repeat("s", maxText), OwnSerial: strings.Repeat("a", maxText)}}
		err = m.Apply(Delta{Edges: []Edge{e}})
	}
	if err == nil {
		t.Errorf("%d bytes of text were taken", m.bytes)
	}
	m = NewMirror()
	for range 3 * MaxEdges {
		if err := m.Apply(Delta{Edges: []Edge{{ID: 7, Key: keyOf(7), About: aboutOf(7)}}}); err != nil {
			t.Fatal(err) // the same edge again and again takes no room
		}
	}
}

// The figure that issue 5 sets: 1,000 peers in at most 2 MB.
func TestTableMemory(t *testing.T) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	table := NewTable(MaxEdges)
	c := table.Follow()
	for i := range 1000 {
		var f Flow
		table.Open(&f, keyOf(i), aboutOf(i), noon)
		table.Close(&f, 1, 1, 1, "", noon)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	used := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("%d bytes for 1,000 peers", used)
	if used > 2<<20 {
		t.Errorf("1,000 peers take %d bytes", used)
	}
	table.Unfollow(c)
}

func TestParseUpdateRefuses(t *testing.T) {
	facts := func(change func(*reportv1.Facts)) *reportv1.Edge {
		f := keyToProto(keyOf(1))
		change(f)
		return &reportv1.Edge{Id: 1, Facts: f}
	}
	none := func(uint32) (Key, bool) { return Key{}, false }
	for name, e := range map[string]*reportv1.Edge{
		"no ID":              {Facts: keyToProto(keyOf(1))},
		"not introduced":     {Id: 5},
		"no direction":       facts(func(f *reportv1.Facts) { f.Direction = 0 }),
		"wrong direction":    facts(func(f *reportv1.Facts) { f.Direction = 259 }),
		"wrong security":     facts(func(f *reportv1.Facts) { f.Security = 4 }),
		"negative security":  facts(func(f *reportv1.Facts) { f.Security = -1 }),
		"wrong port":         facts(func(f *reportv1.Facts) { f.Port = 70000 }),
		"no identity":        facts(func(f *reportv1.Facts) { f.Identity = "root" }),
		"wrong address":      facts(func(f *reportv1.Facts) { f.Address = []byte{1, 2, 3} }),
		"mapped address":     facts(func(f *reportv1.Facts) { f.Address = netip.MustParseAddr("::ffff:1.2.3.4").AsSlice() }),
		"terminal escape":    facts(func(f *reportv1.Facts) { f.Workload = "shop/\x1b[2J" }),
		"C1 control":         facts(func(f *reportv1.Facts) { f.Workload = "shop/\u009b2J" }),
		"not UTF-8":          facts(func(f *reportv1.Facts) { f.Workload = "\xff" }),
		"long text":          facts(func(f *reportv1.Facts) { f.Workload = strings.Repeat("a", maxText+1) }),
		"a rest with a peer": facts(func(f *reportv1.Facts) { f.Rest = true }),
		"wrong reason":       {Id: 1, Facts: keyToProto(keyOf(1)), Refusals: []*reportv1.Refusal{{Reason: "Oh no"}}},
		"long last":          {Id: 1, Facts: keyToProto(keyOf(1)), Last: &reportv1.Last{Service: strings.Repeat("a", maxText+1)}},
	} {
		t.Run(name, func(t *testing.T) {
			if d, err := ParseUpdate(&reportv1.Update{Edges: []*reportv1.Edge{e}}, none); err == nil {
				t.Errorf("taken: %+v", d)
			}
		})
	}
	known := func(uint32) (Key, bool) { return keyOf(1), true }
	if _, err := ParseUpdate(&reportv1.Update{Edges: []*reportv1.Edge{{Id: 1, Facts: keyToProto(keyOf(1))}}}, known); err == nil {
		t.Error("an edge was introduced twice")
	}
	if _, err := ParseUpdate(&reportv1.Update{Edges: []*reportv1.Edge{{Id: 1}, {Id: 1}}}, known); err == nil {
		t.Error("an edge came twice in one update")
	}
	if _, err := ParseUpdate(&reportv1.Update{Edges: make([]*reportv1.Edge, MaxDelta+1)}, none); err == nil {
		t.Error("more edges than allowed")
	}
	if _, err := ParseUpdate(&reportv1.Update{Forgotten: make([]uint32, 2*MaxEdges+1)}, none); err == nil {
		t.Error("more are forgotten than there can be")
	}
}
