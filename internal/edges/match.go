package edges

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	reportv1 "podseal.io/podseal/api/report/v1"
)

// MaxMatches is how many matches a proxy keeps, and one update may carry.
const MaxMatches = 1024

// NoRule stands for the rule where none matched, or where it is the object as a whole.
const NoRule = -1

// MatchKey is what of an object has matched, and what became of it. It is comparable.
type MatchKey struct {
	Kind    string `json:"kind"`    // of the object, such as AuthorizationPolicy
	Object  string `json:"object"`  // "<namespace>/<name>"
	Rule    int    `json:"rule"`    // its number in the object, or NoRule
	Outcome string `json:"outcome"` // a word, such as allowed or denied
}

// Match is when that was last.
type Match struct {
	MatchKey
	Last time.Time `json:"last"` // to the second, and some seconds late
}

// SortMatches puts them in the order of their objects, rules and outcomes.
func SortMatches(all []Match) {
	slices.SortFunc(all, func(a, b Match) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Object, b.Object), cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.Outcome, b.Outcome))
	})
}

// MatchesToProto encodes matches.
func MatchesToProto(all []Match) []*reportv1.Match {
	var out []*reportv1.Match
	for i := range all {
		m := &all[i]
		out = append(out, &reportv1.Match{Kind: m.Kind, Object: m.Object, Rule: int32(m.Rule), Outcome: m.Outcome, Last: m.Last.Unix()})
	}
	return out
}

// ParseMatches is the reverse. Nothing is later than now; what a proxy of ours never
// says is an error.
func ParseMatches(all []*reportv1.Match, now time.Time) ([]Match, error) {
	if n := len(all); n > MaxMatches {
		return nil, fmt.Errorf("%d matches in one update, at most %d are allowed", n, MaxMatches)
	}
	var out []Match
	for _, m := range all {
		namespace, name, ok := strings.Cut(m.GetObject(), "/")
		switch {
		case !areText(m.GetKind(), m.GetObject()):
			return nil, errText
		case m.GetKind() == "" || !ok || namespace == "" || name == "" || m.GetRule() < NoRule:
			return nil, errors.New("a match is of no object")
		case !isReason(m.GetOutcome()):
			return nil, fmt.Errorf("outcome %.40q is not a word", m.GetOutcome())
		}
		last := time.Unix(m.GetLast(), 0)
		if last.After(now) {
			last = now
		}
		out = append(out, Match{MatchKey{m.GetKind(), m.GetObject(), int(m.GetRule()), m.GetOutcome()}, last.UTC()})
	}
	return out, nil
}
