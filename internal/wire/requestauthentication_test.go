package wire

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	meshv1 "podseal.io/podseal/api/mesh/v1"
	"podseal.io/podseal/internal/policy"
)

func fullRequestAuthentication() *policy.RequestAuthentication {
	return &policy.RequestAuthentication{
		Namespace: "shop", Name: "jwt", Scope: policy.MeshWorkloads,
		Rules: []policy.TokenRule{
			{
				Issuer: "https://a", Audiences: []string{"x"}, KeysFrom: "https://a/keys", Headers: []policy.TokenHeader{{Name: "x-jwt", Prefix: "JWT "}},
				Params: []string{"t"}, Cookies: []string{"c"}, PayloadHeader: "x-payload", ClaimHeaders: []policy.ClaimHeader{{Header: "x-sub", Claim: "sub"}}, Forward: true, Spaced: []string{"a.b"},
			},
			{Issuer: "b", Keys: []byte(`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`)},
		},
	}
}

func TestRequestAuthenticationRoundTrip(t *testing.T) {
	want := fullRequestAuthentication()
	b, err := AppendRequestAuthentication(nil, want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseRequestAuthentication(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, compare...); diff != "" {
		t.Error(diff)
	}
	if !AuthenticationConcerns([]byte{0xff}, "shop/x", "shop") || AuthenticationConcerns([]byte{0xff}, "bank/x", "shop") || AuthenticationConcerns(b, "shop/jwt", "shop") {
		t.Error("whom one concerns that can't be read")
	}
}

func TestRequestAuthenticationIsStrict(t *testing.T) {
	for name, spoil := range map[string]func(m *meshv1.RequestAuthentication){
		"no name":  func(m *meshv1.RequestAuthentication) { m.Name = "" },
		"scope":    func(m *meshv1.RequestAuthentication) { m.Scope = 9 },
		"issuer":   func(m *meshv1.RequestAuthentication) { m.Rules[0].Issuer = "" },
		"no keys":  func(m *meshv1.RequestAuthentication) { m.Rules[1].Keys = nil },
		"bad keys": func(m *meshv1.RequestAuthentication) { m.Rules[1].Keys = []byte("{}") },
		"header":   func(m *meshv1.RequestAuthentication) { m.Rules[0].ClaimHeaders[0].Header = "a: b\r\n" },
	} {
		b, err := AppendRequestAuthentication(nil, fullRequestAuthentication())
		if err != nil {
			t.Fatal(err)
		}
		m := &meshv1.RequestAuthentication{}
		if err := proto.Unmarshal(b, m); err != nil {
			t.Fatal(err)
		}
		spoil(m)
		if b, err = proto.Marshal(m); err != nil {
			t.Fatal(err)
		}
		if r, err := ParseRequestAuthentication(b); err == nil {
			t.Errorf("%s: %+v is accepted", name, r)
		}
	}
}

func FuzzParseRequestAuthentication(f *testing.F) {
	b, err := AppendRequestAuthentication(nil, fullRequestAuthentication())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		stable(t, b, AppendRequestAuthentication, ParseRequestAuthentication)
	})
}
