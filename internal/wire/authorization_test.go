package wire

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	meshv1 "podseal.io/podseal/api/mesh/v1"
	"podseal.io/podseal/internal/policy"
)

func fullAuthorizationPolicy() *policy.AuthorizationPolicy {
	return &policy.AuthorizationPolicy{
		Namespace: "shop", Name: "web", Scope: policy.Mesh, Effect: policy.Deny, DryRun: true,
		Rules: []policy.Rule{
			{
				From: [][]policy.Match{
					{{On: policy.SourcePrincipal, Values: []string{"cluster.local/ns/a/sa/b"}, NotValues: []string{"*/sa/c"}}, {On: policy.SourceIP, Values: []string{"10.0.0.0/8"}}},
					{{On: policy.RequestPrincipal, Values: []string{"*"}}},
				},
				To:   [][]policy.Match{{{On: policy.RequestPath, Values: []string{"/a/{**}"}}}, {}},
				When: []policy.Match{{On: policy.RequestHeader, Key: []string{"x-team"}, Values: []string{"a*"}}, {On: policy.RequestClaim, Key: []string{"a", "b"}, NotValues: []string{"x"}}},
			},
			{Never: true},
		},
	}
}

func TestAuthorizationPolicyRoundTrip(t *testing.T) {
	want := fullAuthorizationPolicy()
	b, err := AppendAuthorizationPolicy(nil, want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseAuthorizationPolicy(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, compare...); diff != "" {
		t.Error(diff)
	}
	for i := range b { // a cut message is refused or is another one, and never a panic
		if p, err := ParseAuthorizationPolicy(b[:i]); err == nil && policy.Check(p) != nil {
			t.Errorf("cut at %d: %+v is accepted", i, p)
		}
	}
}

func TestAuthorizationPolicyIsStrict(t *testing.T) {
	bad := map[string]func(m *meshv1.AuthorizationPolicy){
		"no name":           func(m *meshv1.AuthorizationPolicy) { m.Name = "" },
		"namespace":         func(m *meshv1.AuthorizationPolicy) { m.Namespace = "a/b" },
		"scope":             func(m *meshv1.AuthorizationPolicy) { m.Scope = 4 },
		"effect":            func(m *meshv1.AuthorizationPolicy) { m.Effect = 4 },
		"unknown attribute": func(m *meshv1.AuthorizationPolicy) { m.Rules[0].When[0].On = 18 },
		"no attribute":      func(m *meshv1.AuthorizationPolicy) { m.Rules[0].When[0].On = 0 },
		"no key":            func(m *meshv1.AuthorizationPolicy) { m.Rules[0].When[0].Key = nil },
		"no value":          func(m *meshv1.AuthorizationPolicy) { m.Rules[0].When[0].Values = nil },
		"bad value":         func(m *meshv1.AuthorizationPolicy) { m.Rules[0].From[0].All[1].Values = []string{"10.0.0.0/99"} },
	}
	for name, spoil := range bad {
		b, err := AppendAuthorizationPolicy(nil, fullAuthorizationPolicy())
		if err != nil {
			t.Fatal(err)
		}
		m := &meshv1.AuthorizationPolicy{}
		if err := proto.Unmarshal(b, m); err != nil {
			t.Fatal(err)
		}
		spoil(m)
		if b, err = proto.Marshal(m); err != nil {
			t.Fatal(err)
		}
		if p, err := ParseAuthorizationPolicy(b); err == nil {
			t.Errorf("%s: %+v is accepted", name, p)
		}
	}
	if _, err := AppendAuthorizationPolicy(nil, &policy.AuthorizationPolicy{Namespace: "a", Name: "b", Effect: 7}); err == nil || !strings.Contains(err.Error(), `"a/b"`) {
		t.Errorf("an unknown effect is encoded: %v", err)
	}
}

// FuzzParseAuthorizationPolicy: what parses encodes, and that encoding parses to the same.
func FuzzParseAuthorizationPolicy(f *testing.F) {
	b, err := AppendAuthorizationPolicy(nil, fullAuthorizationPolicy())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) { stable(t, b, AppendAuthorizationPolicy, ParseAuthorizationPolicy) })
}
