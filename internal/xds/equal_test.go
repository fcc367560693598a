package xds

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"podseal.io/podseal/internal/xds/xdspb"
)

// link is a server, a wildcard client, the two queues between them and what the
// client's handler has in force. Bodies that begin with ! are rejected.
type link struct {
	t                  *testing.T
	store              *Store
	session            *session
	replica            *replica
	toServer, toClient [][]byte
	inForce            map[string]string // by type + " " + name
	tick               int64
}

var linkTypes = []string{"A", "B"}

func newLink(t *testing.T) *link {
	l := &link{t: t, store: NewStore(), replica: newReplica(linkTypes, nil), inForce: map[string]string{}}
	for _, typeURL := range linkTypes {
		l.store.Replace(typeURL, nil)
	}
	l.connect()
	return l
}

func (l *link) connect() {
	l.session, l.toServer, l.toClient = newSession(), nil, nil
	l.session.limit = 600
	for _, req := range l.replica.open("n", nil) {
		l.send(req)
	}
}

func (l *link) send(req *xdspb.DeltaDiscoveryRequest) {
	b, err := proto.Marshal(req)
	if err != nil {
		l.t.Fatal(err)
	}
	l.toServer = append(l.toServer, b)
}

// serve gives the server one request, or none: only a newer view.
func (l *link) serve(withRequest bool) {
	l.tick++
	ev := event{view: l.store.view(), now: time.Unix(l.tick, 0)}
	if withRequest && len(l.toServer) > 0 {
		ev.req = &xdspb.DeltaDiscoveryRequest{}
		if err := proto.Unmarshal(l.toServer[0], ev.req); err != nil {
			l.t.Fatal(err)
		}
		l.toServer = l.toServer[1:]
	}
	out, err := l.session.step(ev)
	if err != nil {
		l.t.Fatalf("step: %v", err)
	}
	waiting := map[string]bool{}
	for _, r := range out {
		if waiting[r.GetTypeUrl()] {
			l.t.Fatalf("two responses of type %s at once", r.GetTypeUrl())
		}
		waiting[r.GetTypeUrl()] = true
		b, err := proto.Marshal(r)
		if err != nil {
			l.t.Fatal(err)
		}
		l.toClient = append(l.toClient, b)
	}
}

func (l *link) receive() {
	if len(l.toClient) == 0 {
		return
	}
	res := &xdspb.DeltaDiscoveryResponse{}
	if err := proto.Unmarshal(l.toClient[0], res); err != nil {
		l.t.Fatal(err)
	}
	l.toClient = l.toClient[1:]
	l.send(l.replica.apply(res, l.handle))
}

func (l *link) handle(typeURL string, upserts []Resource, removed []string) map[string]error {
	rejected := map[string]error{}
	for _, u := range upserts {
		if strings.HasPrefix(string(u.Body), "!") {
			rejected[u.Name] = errors.New("marked as bad")
			continue
		}
		l.inForce[typeURL+" "+u.Name] = string(u.Body)
	}
	for _, name := range removed {
		if _, ok := l.inForce[typeURL+" "+name]; !ok {
			l.t.Errorf("removal of %s, which is not in force", name)
		}
		delete(l.inForce, typeURL+" "+name)
	}
	return rejected
}

// settle lets the two ends talk until neither has anything to say.
func (l *link) settle() {
	for range 10_000 {
		l.serve(true)
		l.receive()
		if len(l.toServer) == 0 && len(l.toClient) == 0 {
			l.serve(false)
			if len(l.toClient) == 0 {
				return
			}
		}
	}
	l.t.Fatal("the two ends never come to rest")
}

// check compares what is in force with the store: equal but for what is
// rejected, in whose place an older version or nothing is in force.
func (l *link) check() {
	l.t.Helper()
	want := map[string]string{}
	for _, typeURL := range linkTypes {
		for _, r := range l.store.Resources(typeURL) {
			key := typeURL + " " + r.Name
			if want[key] = string(r.Body); strings.HasPrefix(want[key], "!") {
				if old, ok := l.inForce[key]; ok {
					want[key] = old
				} else {
					delete(want, key)
				}
			}
		}
	}
	if diff := cmp.Diff(want, l.inForce); diff != "" {
		l.t.Fatalf("-store +client:\n%s", diff)
	}
	for key := range l.inForce {
		typeURL, name, _ := strings.Cut(key, " ")
		if l.replica.held[typeURL][name] != versionOf([]byte(l.inForce[key])) {
			l.t.Fatalf("%s is in force at another version than noted", key)
		}
	}
	held := len(l.replica.held["A"]) + len(l.replica.held["B"])
	if held != len(l.inForce) {
		l.t.Fatalf("%d noted as held, %d in force", held, len(l.inForce))
	}
}

// run plays random operations, each byte one.
func (l *link) run(ops []byte) {
	content := map[string]map[string][]byte{"A": {}, "B": {}}
	for _, op := range ops {
		typeURL := linkTypes[int(op>>3)%2]
		name := fmt.Sprintf("n%d", op>>4)
		switch op % 8 {
		case 0, 1:
			l.tick++
			content[typeURL][name] = fmt.Append(nil, l.tick%5)
		case 2:
			content[typeURL][name] = []byte("!")
		case 3:
			delete(content[typeURL], name)
		case 4:
			l.serve(true)
		case 5:
			l.receive()
		case 6:
			l.serve(false)
		case 7:
			// One in sixteen: the stream breaks; every other time the initial
			// versions of the next one don't fit.
			if op>>4 == 0 {
				l.replica.limit = maxInitial * int(op>>3&1)
				l.connect()
			}
		}
		l.store.Replace(typeURL, maps.Clone(content[typeURL]))
	}
	l.settle()
	l.check()
}

// TestEqual plays random sequences: whatever happened, the client ends up with
// what is in the store.
func TestEqual(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		ops := make([]byte, 20+r.IntN(200))
		for i := range ops {
			ops[i] = byte(r.Uint32())
		}
		newLink(t).run(ops)
	}
}

func FuzzEqual(f *testing.F) {
	f.Add([]byte{0, 4, 5, 4, 3, 7, 4, 5})
	f.Add([]byte{0x10, 4, 4, 5, 5, 0x12, 6, 5, 4, 7, 4, 4, 5, 5})
	f.Fuzz(func(t *testing.T, ops []byte) {
		if len(ops) < 2000 {
			newLink(t).run(ops)
		}
	})
}

// asker is a client that subscribes by name and follows the protocol text
// naively.
type asker struct {
	names map[string]bool
	all   bool
	has   map[string]string
}

// covered drops what the client unsubscribed from.
func (a *asker) covered() {
	for name := range a.has {
		if !a.all && !a.names[name] {
			delete(a.has, name)
		}
	}
}

// TestEqualByName does the same for a client that subscribes by name, and
// changes its mind.
func TestEqualByName(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for round := range 1000 {
		store, s, a := NewStore(), newSession(), &asker{names: map[string]bool{}, has: map[string]string{}}
		s.limit = 400
		content := map[string][]byte{}
		store.Replace("A", nil)
		var queue []*xdspb.DeltaDiscoveryResponse
		step := func(req *xdspb.DeltaDiscoveryRequest) {
			out, err := s.step(event{req: req, view: store.view()})
			if err != nil {
				t.Fatal(err)
			}
			queue = append(queue, out...)
		}
		receive := func() {
			res := queue[0]
			queue = queue[1:]
			for _, x := range res.GetResources() {
				a.has[x.GetName()] = string(x.GetResource().GetValue())
			}
			for _, name := range res.GetRemovedResources() {
				delete(a.has, name)
			}
			a.covered()
			step(&xdspb.DeltaDiscoveryRequest{TypeUrl: "A", ResponseNonce: res.GetNonce()})
		}
		step(&xdspb.DeltaDiscoveryRequest{TypeUrl: "A", ResourceNamesSubscribe: []string{"n0"}})
		a.names["n0"] = true
		for range 60 {
			name := fmt.Sprintf("n%d", r.IntN(5))
			req := &xdspb.DeltaDiscoveryRequest{TypeUrl: "A"}
			switch r.IntN(9) {
			case 0, 1:
				content[name] = fmt.Append(nil, r.IntN(3))
			case 2:
				delete(content, name)
			case 3:
				a.names[name] = true
				req.ResourceNamesSubscribe = []string{name}
			case 4:
				delete(a.names, name)
				req.ResourceNamesUnsubscribe = []string{name}
			case 5:
				if a.all = !a.all; a.all {
					req.ResourceNamesSubscribe = []string{"*"}
				} else {
					req.ResourceNamesUnsubscribe = []string{"*"}
				}
			default:
				if len(queue) > 0 {
					receive()
				}
				req = nil
			}
			a.covered()
			store.Replace("A", maps.Clone(content))
			step(req)
		}
		for step(nil); len(queue) > 0; {
			receive()
		}
		want := map[string]string{}
		for name, body := range content {
			if a.all || a.names[name] {
				want[name] = string(body)
			}
		}
		if diff := cmp.Diff(want, a.has); diff != "" {
			t.Fatalf("round %d: -store +client:\n%s", round, diff)
		}
	}
}

// FuzzSession gives a session any requests: it refuses or answers, and never
// has two responses of one type in flight.
func FuzzSession(f *testing.F) {
	seed, err := proto.Marshal(&xdspb.DeltaDiscoveryRequest{TypeUrl: "A", ResourceNamesSubscribe: []string{"*", "x"}, InitialResourceVersions: map[string]string{"a": "1"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed, seed)
	f.Add([]byte{}, seed)
	f.Fuzz(func(t *testing.T, first, second []byte) {
		store, s := NewStore(), newSession()
		store.Replace("A", map[string][]byte{"a": []byte("1"), "b": []byte("2")})
		for _, b := range [][]byte{first, second, first} {
			req := &xdspb.DeltaDiscoveryRequest{}
			if proto.Unmarshal(b, req) != nil {
				return
			}
			out, err := s.step(event{req: req, view: store.view()})
			if err != nil {
				return
			}
			for _, r := range out {
				if sub := s.subs[r.GetTypeUrl()]; sub == nil || sub.inflight == nil || sub.inflight.nonce != r.GetNonce() {
					t.Fatalf("a response that is not in flight: %v", r)
				}
			}
			s.types()
		}
	})
}
