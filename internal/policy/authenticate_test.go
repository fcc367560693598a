package policy_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"podseal.io/podseal/internal/jwt"
	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
)

const issuerA, issuerB = "https://a.example", "b@b.example"

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

type headers map[string]string

func (h headers) Field(name string) ([]byte, bool) { v, ok := h[name]; return []byte(v), ok }

func request(path string, fields headers) *policy.Request {
	return &policy.Request{Method: []byte("GET"), Host: []byte("web"), Path: []byte(path), Header: fields}
}

// authentication is what one object of these rules amounts to.
func authentication(t testing.TB, rules ...policy.TokenRule) *policy.Authentication {
	t.Helper()
	a, err := policy.NewAuthentication([]*policy.RequestAuthentication{{Namespace: "shop", Name: "a", Rules: rules}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func bearer(token string) headers { return headers{"authorization": "Bearer " + token} }

// TestAuthenticate is contract 1.38 and 2.60: what passes, as whom, and what is refused.
func TestAuthenticate(t *testing.T) {
	a := meshtest.NewIssuer(t, issuerA, "a", "ES256")
	b := meshtest.NewIssuer(t, issuerB, "b", "EdDSA")
	forged := meshtest.NewIssuer(t, issuerA, "a", "ES256")
	ruleA := policy.TokenRule{Issuer: issuerA, Keys: meshtest.KeySet(t, a)}
	ruleB := policy.TokenRule{Issuer: issuerB, Keys: meshtest.KeySet(t, b)}
	change := func(r policy.TokenRule, f func(*policy.TokenRule)) policy.TokenRule { f(&r); return r }
	joe := a.Token(map[string]any{"sub": "joe", "aud": []string{"shop", "x"}, "azp": "app"})
	bob := b.Token(map[string]any{"sub": "bob"})
	old := a.Token(map[string]any{"sub": "joe", "exp": noon.Add(-time.Hour).Unix()})
	audience := change(ruleA, func(r *policy.TokenRule) { r.Audiences = []string{"https://shop/"} })
	elsewhere := change(ruleA, func(r *policy.TokenRule) {
		r.Headers, r.Params, r.Cookies = []policy.TokenHeader{{Name: "x-token"}, {Name: "x-jwt", Prefix: "JWT "}}, []string{"t"}, []string{"sid"}
	})
	tests := []struct {
		name    string
		rules   []policy.TokenRule
		request *policy.Request
		subject string // "" is no token
		failure error
	}{
		{"no token", []policy.TokenRule{ruleA}, request("/", nil), "", nil},
		{"another scheme is no token", []policy.TokenRule{ruleA}, request("/", headers{"authorization": "Basic " + joe}), "", nil},
		{"bearer", []policy.TokenRule{ruleA}, request("/", bearer(joe)), "joe", nil},
		{"parameter", []policy.TokenRule{ruleA}, request("/x?a=1&access_token="+joe, nil), "joe", nil},
		{"parameter in escapes", []policy.TokenRule{ruleA}, request("/x?access%5Ftoken="+strings.ReplaceAll(joe, ".", "%2E"), nil), "joe", nil},
		{"of the other issuer", []policy.TokenRule{ruleA, ruleB}, request("/", bearer(bob)), "bob", nil},
		{"of an unknown issuer", []policy.TokenRule{ruleB}, request("/", bearer(joe)), "", jwt.ErrIssuer},
		{"forged", []policy.TokenRule{ruleB, ruleA}, request("/", bearer(forged.Token(nil))), "", jwt.ErrVerification},
		{"expired", []policy.TokenRule{ruleA, ruleB}, request("/", bearer(old)), "", jwt.ErrExpired},
		{"not a token", []policy.TokenRule{ruleA}, request("/", bearer("x")), "", jwt.ErrForm},
		{"an empty one", []policy.TokenRule{ruleA}, request("/", bearer("")), "", jwt.ErrForm},
		{"a good one beside a bad one", []policy.TokenRule{ruleA}, request("/?access_token="+old, bearer(joe)), "", jwt.ErrExpired},
		{"two in one field", []policy.TokenRule{ruleA}, request("/", headers{"authorization": "Bearer " + joe + ",Bearer " + old}), "", jwt.ErrExpired},
		{"too many", []policy.TokenRule{ruleA}, request("/?x"+strings.Repeat("&access_token="+joe, 9), nil), "", jwt.ErrForm},
		{"audience", []policy.TokenRule{audience}, request("/", bearer(joe)), "joe", nil},
		{"another audience", []policy.TokenRule{audience}, request("/", bearer(a.Token(map[string]any{"aud": "bank"}))), "", jwt.ErrAudience},
		{"no audience", []policy.TokenRule{audience}, request("/", bearer(a.Token(nil))), "", jwt.ErrAudience},
		{"elsewhere, not in the usual place", []policy.TokenRule{elsewhere}, request("/", bearer(old)), "", nil},
		{"field", []policy.TokenRule{elsewhere}, request("/", headers{"x-token": joe}), "joe", nil},
		{"field with a prefix", []policy.TokenRule{elsewhere}, request("/", headers{"x-jwt": "JWT " + joe}), "joe", nil},
		{"field without its prefix", []policy.TokenRule{elsewhere}, request("/", headers{"x-jwt": joe}), "", nil},
		{"own parameter", []policy.TokenRule{elsewhere}, request("/?t="+joe, nil), "joe", nil},
		{"cookie", []policy.TokenRule{elsewhere}, request("/", headers{"cookie": `a=b; sid="` + joe + `"; c=d`}), "joe", nil},
		{"another cookie", []policy.TokenRule{elsewhere}, request("/", headers{"cookie": "xsid=" + old}), "", nil},
		{"no keys yet", []policy.TokenRule{{Issuer: issuerA, KeysFrom: "https://x"}}, request("/", bearer(joe)), "", jwt.ErrKeysNotFetched},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			authentication := authentication(t, tt.rules...)
			for range 2 { // the second time it is remembered
				got := authentication.Authenticate(tt.request, noon)
				if !errors.Is(got.Failure, tt.failure) || (got.Failure == nil) != (tt.failure == nil) {
					t.Fatalf("failure %v, want %v", got.Failure, tt.failure)
				}
				if subject := ""; got.Token != nil {
					if subject = got.Token.Subject; subject != tt.subject {
						t.Errorf("subject %q, want %q", subject, tt.subject)
					}
				} else if tt.subject != "" {
					t.Error("no token")
				}
			}
		})
	}
	rule := authentication(t, ruleA)
	soon := a.Token(map[string]any{"exp": noon.Unix() + 1})
	if got := rule.Authenticate(request("/", bearer(soon)), noon); got.Failure != nil {
		t.Error(got.Failure)
	}
	if got := rule.Authenticate(request("/", bearer(soon)), noon.Add(time.Hour)); !errors.Is(got.Failure, jwt.ErrExpired) {
		t.Errorf("a token that is remembered never expires: %v", got.Failure)
	}
}

// Whose tokens were taken or refused is noted, by rule, until it is taken.
func TestAuthenticateMatched(t *testing.T) { // contract 1.38
	a, b := meshtest.NewIssuer(t, issuerA, "a", "ES256"), meshtest.NewIssuer(t, issuerB, "b", "EdDSA")
	auth, err := policy.NewAuthentication([]*policy.RequestAuthentication{
		{Namespace: "shop", Name: "a", Rules: []policy.TokenRule{{Issuer: issuerA, Keys: meshtest.KeySet(t, a)}}},
		{Namespace: "shop", Name: "b", Rules: []policy.TokenRule{{Issuer: issuerB, Keys: meshtest.KeySet(t, b)}}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		token, want string
	}{
		{"", ""},
		{b.Token(nil), "shop/b[0] allowed"},
		{a.Token(map[string]any{"exp": noon.Add(-time.Hour).Unix()}), "shop/a[0] denied"},
		{a.Token(nil), "shop/a[0] allowed"},
	} {
		h := headers{}
		if tc.token != "" {
			h = bearer(tc.token)
		}
		auth.Authenticate(request("/", h), noon)
		var got []string
		auth.Matched(func(key string, rule int, o policy.Outcome) {
			got = append(got, fmt.Sprintf("%s[%d] %s", key, rule, o))
		})
		if strings.Join(got, ", ") != tc.want {
			t.Errorf("%v, want %s", got, tc.want)
		}
	}
	var none *policy.Authentication
	none.Matched(func(string, int, policy.Outcome) { t.Error("nobody looks for tokens") })
}

// TestAuthenticateChanges is what the application gets besides (contract 1.38).
func TestAuthenticateChanges(t *testing.T) {
	a := meshtest.NewIssuer(t, issuerA, "a", "ES256")
	rule := policy.TokenRule{
		Issuer: issuerA, Keys: meshtest.KeySet(t, a), PayloadHeader: "x-payload",
		ClaimHeaders: []policy.ClaimHeader{
			{Header: "x-sub", Claim: "sub"},
			{Header: "x-role", Claim: "realm.role"},
			{Header: "x-n", Claim: "n"},
			{Header: "x-ok", Claim: "ok"},
			{Header: "x-list", Claim: "list"},
			{Header: "x-none", Claim: "none.none"},
			{Header: "x-evil", Claim: "evil"},
			{Header: "x-dot", Claim: "https://a.b/c"},
		},
	}
	token := a.Token(map[string]any{
		"sub": "joe", "realm": map[string]any{"role": "admin"}, "n": 9007199254740993, "ok": true, "list": []string{"a"}, "evil": "a\r\nx-admin: 1", "https://a.b/c": "d",
	})
	payload := strings.Split(token, ".")[1]
	set := []policy.Field{{Name: "x-payload", Value: payload}, {Name: "x-sub", Value: "joe"}, {Name: "x-role", Value: "admin"}, {Name: "x-n", Value: "9007199254740993"}, {Name: "x-ok", Value: "true"}, {Name: "x-dot", Value: "d"}}
	ask := func(rule policy.TokenRule, path string, h headers) policy.Authenticated {
		got := authentication(t, rule).Authenticate(request(path, h), noon)
		if got.Failure != nil {
			t.Fatal(got.Failure)
		}
		got.Token = nil
		return got
	}
	if diff := cmp.Diff(policy.Authenticated{Remove: []string{"authorization"}, Set: set}, ask(rule, "/?a=b", bearer(token))); diff != "" {
		t.Error(diff)
	}
	for path, want := range map[string]string{
		"/x?access_token=" + token:                           "/x",
		"/x?a=b%20&access_token=" + token + "&c":             "/x?a=b%20&c",
		"/?access_token=" + token + "&access_token=" + token: "/",
	} {
		if diff := cmp.Diff(policy.Authenticated{Path: want, Set: set}, ask(rule, path, nil)); diff != "" {
			t.Error(diff)
		}
	}
	forward := rule
	forward.Forward = true
	if diff := cmp.Diff(policy.Authenticated{Set: set}, ask(forward, "/?access_token="+token, bearer(token))); diff != "" {
		t.Error(diff)
	}
	owned := authentication(t, rule).Owned()
	if diff := cmp.Diff([]string{"x-payload", "x-sub", "x-role", "x-n", "x-ok", "x-list", "x-none", "x-evil", "x-dot"}, owned); diff != "" {
		t.Error(diff)
	}
}

// TestTokenInPolicy: requestPrincipals and request.auth.* are of the token that was
// verified, words between spaces each by itself. Contract 6.15, 6.29.
func TestTokenInPolicy(t *testing.T) {
	a := meshtest.NewIssuer(t, issuerA, "a", "ES256")
	rule := policy.TokenRule{Issuer: issuerA, Keys: meshtest.KeySet(t, a), Spaced: []string{"custom", "in.side"}}
	r := request("/", bearer(a.Token(map[string]any{
		"sub": "joe", "aud": "shop", "azp": "app", "scope": "read write", "custom": "c d", "in": map[string]any{"side": "e f", "x": "g h"}, "groups": []string{"dev", "ops"}, "plain": "a b",
	})))
	r.Token = authentication(t, rule).Authenticate(r, noon).Token
	for _, tt := range []struct {
		on     policy.Attribute
		key    []string
		value  string
		wanted bool
	}{
		{policy.RequestPrincipal, nil, issuerA + "/joe", true},
		{policy.RequestPrincipal, nil, issuerA + "/eve", false},
		{policy.RequestPrincipal, nil, "*", true},
		{policy.RequestAudiences, nil, "shop", true},
		{policy.RequestPresenter, nil, "app", true},
		{policy.RequestClaim, []string{"scope"}, "write", true},
		{policy.RequestClaim, []string{"scope"}, "read write", false},
		{policy.RequestClaim, []string{"custom"}, "d", true},
		{policy.RequestClaim, []string{"in", "side"}, "e", true},
		{policy.RequestClaim, []string{"in", "x"}, "g h", true},
		{policy.RequestClaim, []string{"groups"}, "ops", true},
		{policy.RequestClaim, []string{"plain"}, "a", false},
	} {
		access, err := policy.NewAccess([]*policy.AuthorizationPolicy{{Namespace: "shop", Name: "a", Rules: []policy.Rule{{When: []policy.Match{{On: tt.on, Key: tt.key, Values: []string{tt.value}}}}}}}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := access.Judge(&policy.Attempt{Request: r}).Allowed; got != tt.wanted {
			t.Errorf("%v %v %s: %v", tt.on, tt.key, tt.value, got)
		}
	}
}

func TestAuthenticationsInForce(t *testing.T) {
	a := meshtest.NewIssuer(t, issuerA, "a", "ES256")
	make1 := func(ns string, scope policy.Scope) *policy.RequestAuthentication {
		return &policy.RequestAuthentication{Namespace: ns, Name: "r", Scope: scope, Rules: []policy.TokenRule{{Issuer: issuerA, Keys: meshtest.KeySet(t, a)}}}
	}
	hold, missing := policy.InForce(map[string]*policy.RequestAuthentication{
		"shop/r": make1("shop", policy.Namespace), "root/m": make1("root", policy.Mesh), "bank/r": make1("bank", policy.Namespace), "root/s": make1("root", policy.MeshWorkloads),
	}, "shop", []string{"shop/x"})
	if len(hold) != 2 || len(missing) != 1 {
		t.Errorf("hold %d, missing %v", len(hold), missing)
	}
	authentication, err := policy.NewAuthentication(hold, missing)
	if err != nil || authentication.Pending() != "shop/x" {
		t.Errorf("%v, pending %q", err, authentication.Pending())
	}
}

// TestKeepKeys: keys that can't be fetched at the moment are those from before.
func TestKeepKeys(t *testing.T) {
	keys := meshtest.KeySet(t, meshtest.NewIssuer(t, issuerA, "a", "ES256"))
	earlier := &policy.RequestAuthentication{Rules: []policy.TokenRule{{Issuer: issuerA, KeysFrom: "u", Keys: keys}}}
	for _, tt := range []struct {
		rule policy.TokenRule
		kept bool
	}{
		{policy.TokenRule{Issuer: issuerA, KeysFrom: "u"}, true},
		{policy.TokenRule{Issuer: issuerB, KeysFrom: "u"}, false},
		{policy.TokenRule{Issuer: issuerA, KeysFrom: "v"}, false},
	} {
		now := &policy.RequestAuthentication{Rules: []policy.TokenRule{tt.rule}}
		if now.KeepKeys(earlier); (len(now.Rules[0].Keys) > 0) != tt.kept {
			t.Errorf("%+v: kept %v", tt.rule, !tt.kept)
		}
	}
}

func TestCheckAuthentication(t *testing.T) {
	keys := meshtest.KeySet(t, meshtest.NewIssuer(t, issuerA, "a", "ES256"))
	for name, rule := range map[string]policy.TokenRule{
		"no issuer":   {Keys: keys},
		"no keys":     {Issuer: issuerA},
		"bad keys":    {Issuer: issuerA, Keys: []byte("{}")},
		"name":        {Issuer: issuerA, Keys: keys, PayloadHeader: "a b"},
		"capitals":    {Issuer: issuerA, Keys: keys, PayloadHeader: "X-A"},
		"line end":    {Issuer: issuerA, Keys: keys, ClaimHeaders: []policy.ClaimHeader{{Header: "a\r\nb", Claim: "c"}}},
		"host":        {Issuer: issuerA, Keys: keys, ClaimHeaders: []policy.ClaimHeader{{Header: "host", Claim: "c"}}},
		"length":      {Issuer: issuerA, Keys: keys, PayloadHeader: "content-length"},
		"client cert": {Issuer: issuerA, Keys: keys, PayloadHeader: "x-forwarded-client-cert"},
	} {
		if err := policy.CheckAuthentication(&policy.RequestAuthentication{Namespace: "a", Name: "b", Rules: []policy.TokenRule{rule}}); err == nil {
			t.Error(name, "passes")
		}
	}
}

// TestRemembered: so many tokens are remembered and no more.
func TestRemembered(t *testing.T) {
	a := meshtest.NewIssuer(t, issuerA, "a", "EdDSA")
	authentication := authentication(t, policy.TokenRule{Issuer: issuerA, Keys: meshtest.KeySet(t, a)})
	for i := range 600 {
		if got := authentication.Authenticate(request("/", bearer(a.Token(map[string]any{"sub": fmt.Sprint(i)}))), noon); got.Failure != nil || got.Token.Subject != fmt.Sprint(i) {
			t.Fatalf("%d: %+v", i, got)
		}
	}
	if n := authentication.Remembered(); n == 0 || n > 512 {
		t.Errorf("%d are remembered", n)
	}
}

func FuzzAuthenticate(f *testing.F) {
	a := meshtest.NewIssuer(f, issuerA, "a", "EdDSA")
	good := a.Token(map[string]any{"sub": "joe"})
	f.Add("/?access_token="+good, "Bearer x", "sid=1")
	f.Add("/?%zz=1&&=#access_token", "Bearer "+good+" Bearer ", `sid="`)
	f.Add("*", "", "=;,")
	authentication := authentication(f, policy.TokenRule{Issuer: issuerA, Keys: meshtest.KeySet(f, a)}, policy.TokenRule{Issuer: issuerB, KeysFrom: "u", Cookies: []string{"sid"}})
	f.Fuzz(func(t *testing.T, path, field, cookie string) {
		got := authentication.Authenticate(request(path, headers{"authorization": field, "cookie": cookie}), noon)
		if got.Token != nil && (got.Failure != nil || !strings.Contains(path+field, ".")) {
			t.Errorf("%+v", got)
		}
		if strings.ContainsAny(got.Path, " \r\n") && !strings.ContainsAny(path, " \r\n") {
			t.Errorf("path %q", got.Path)
		}
	})
}

func BenchmarkAuthenticate(b *testing.B) {
	a := meshtest.NewIssuer(b, issuerA, "a", "RS256")
	authentication := authentication(b, policy.TokenRule{Issuer: issuerA, Keys: meshtest.KeySet(b, a)})
	r := request("/", bearer(a.Token(map[string]any{"sub": "joe"})))
	b.ReportAllocs()
	for b.Loop() {
		if got := authentication.Authenticate(r, noon); got.Failure != nil {
			b.Fatal(got.Failure)
		}
	}
}
