package edges

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	reportv1 "podseal.io/podseal/api/report/v1"
)

func someMatches() []Match {
	return []Match{
		{MatchKey{"AuthorizationPolicy", "shop/api", 3, "denied"}, noon.UTC().Truncate(time.Second)},
		{MatchKey{"DestinationRule", "shop/api", -1, "followed"}, noon.UTC().Truncate(time.Second)},
	}
}

func TestMatches(t *testing.T) {
	got, err := ParseMatches(MatchesToProto(someMatches()), noon)
	if diff := cmp.Diff(someMatches(), got); diff != "" || err != nil {
		t.Error(diff, err)
	}
	early, err := ParseMatches(MatchesToProto(someMatches()), noon.Add(-time.Hour))
	if err != nil || !early[0].Last.Equal(noon.Add(-time.Hour)) {
		t.Errorf("%v, %v: it is in the future", early, err)
	}
	for name, m := range map[string]*reportv1.Match{
		"no object": {Kind: "X", Outcome: "allowed"}, "no kind": {Object: "a/b", Outcome: "allowed"}, "no name": {Kind: "X", Object: "a/", Outcome: "allowed"},
		"no outcome": {Kind: "X", Object: "a/b"}, "no word": {Kind: "X", Object: "a/b", Outcome: "ALL of it"}, "no rule": {Kind: "X", Object: "a/b", Outcome: "allowed", Rule: -2},
		"escape": {Kind: "X", Object: "a/\x1b[2J", Outcome: "allowed"},
	} {
		if _, err := ParseMatches([]*reportv1.Match{m}, noon); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := ParseMatches(make([]*reportv1.Match, MaxMatches+1), noon); err == nil {
		t.Error("too many are taken")
	}
}

// What a stranger sends never panics, and what is taken encodes to itself.
func FuzzParseMatches(f *testing.F) {
	b, err := proto.Marshal(&reportv1.Update{Matches: MatchesToProto(someMatches())})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		u := &reportv1.Update{}
		if proto.Unmarshal(b, u) != nil {
			return
		}
		all, err := ParseMatches(u.GetMatches(), noon)
		if err != nil {
			return
		}
		again, err := ParseMatches(MatchesToProto(all), noon)
		if diff := cmp.Diff(all, again); diff != "" || err != nil {
			t.Error(diff, err)
		}
	})
}
