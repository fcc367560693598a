package edges

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	reportv1 "podseal.io/podseal/api/report/v1"
)

// What a stranger sends never panics, and what is taken encodes to itself.
func FuzzParseUpdate(f *testing.F) {
	plain := Key{Direction: Inbound, Security: Plaintext, Protocol: "http", Port: 80, Address: aboutOf(3).Address}
	for _, d := range []Delta{
		{Complete: true},
		{Edges: []Edge{{ID: 1, Key: keyOf(1), About: aboutOf(1), First: noon, Last: noon}}, Forgotten: []uint32{4, 5}},
		{Edges: []Edge{{ID: 2, Key: plain, First: noon, Last: noon, Counts: Counts{Connections: 1, Refusals: map[string]uint64{"plaintext_refused": 9}}}}},
		{Edges: []Edge{{ID: 3, Key: restOf(plain), Folded: 7, Open: 2}}, Complete: true},
	} {
		b, err := proto.Marshal(ToProto(d, map[uint32]bool{}))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		u := &reportv1.Update{}
		if proto.Unmarshal(b, u) != nil {
			return
		}
		none := func(uint32) (Key, bool) { return Key{}, false }
		d, err := ParseUpdate(u, none)
		if err != nil {
			return
		}
		again, err := ParseUpdate(ToProto(d, map[uint32]bool{}), none)
		if err != nil {
			t.Fatalf("its own encoding is refused: %v", err)
		}
		if diff := cmp.Diff(d, again, sameAddrs); diff != "" {
			t.Error(diff)
		}
		_ = NewMirror().Apply(d)
	})
}
