package jwt_test

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	"podseal.io/podseal/internal/jwt"
	"podseal.io/podseal/internal/meshtest"
)

const issuer = "https://issuer.example"

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

func keys(t testing.TB, of ...*meshtest.Issuer) *jwt.Keys {
	t.Helper()
	k, err := jwt.ParseKeys(meshtest.KeySet(t, of...))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// verify is what becomes of a token.
func verify(k *jwt.Keys, raw string) error {
	t, err := jwt.Parse(raw)
	if err != nil {
		return err
	}
	return k.Verify(t)
}

// TestAlgorithms: every algorithm that Istio takes, each with another's key, too.
func TestAlgorithms(t *testing.T) {
	var all []*meshtest.Issuer
	for _, algorithm := range []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"} {
		all = append(all, meshtest.NewIssuer(t, issuer, algorithm, algorithm))
	}
	together := keys(t, all...)
	if together.Len() != len(all) {
		t.Errorf("%d keys", together.Len())
	}
	for i, who := range all {
		raw := who.Token(map[string]any{"sub": "joe"})
		if err := verify(together, raw); err != nil {
			t.Errorf("%s: %v", who.KeyID, err)
		}
		other := all[(i+1)%len(all)]
		if err := verify(keys(t, other), raw); !errors.Is(err, jwt.ErrNoKey) {
			t.Errorf("%s with a key of %s: %v", who.KeyID, other.KeyID, err)
		}
		changed := raw[:len(raw)-6] + strings.Map(func(r rune) rune {
			if r == 'A' {
				return 'B'
			}
			return 'A'
		}, raw[len(raw)-6:])
		if err := verify(together, changed); err == nil {
			t.Errorf("%s: a changed signature is good", who.KeyID)
		}
	}
}

// TestForged: nothing unsigned, and nothing signed with what everybody knows.
func TestForged(t *testing.T) {
	who := meshtest.NewIssuer(t, issuer, "k", "RS256")
	k := keys(t, who)
	parts := strings.Split(who.Token(map[string]any{"sub": "joe"}), ".")
	stranger := meshtest.NewIssuer(t, issuer, "k", "RS256")
	tests := []struct {
		name, raw string
		want      error
	}{
		{"two parts", parts[0] + "." + parts[1], jwt.ErrForm},
		{"four parts", strings.Join(parts, ".") + ".x", jwt.ErrForm},
		{"too long", strings.Repeat("a", jwt.MaxToken) + ".b.c", jwt.ErrForm},
		{"none", b64(`{"alg":"none"}`) + "." + parts[1] + ".", jwt.ErrAlgorithm},
		{"None", b64(`{"alg":"None"}`) + "." + parts[1] + ".", jwt.ErrAlgorithm},
		{"a shared secret", b64(`{"alg":"HS256"}`) + "." + parts[1] + "." + parts[2], jwt.ErrAlgorithm},
		{"no algorithm", b64(`{}`) + "." + parts[1] + "." + parts[2], jwt.ErrAlgorithm},
		{"header is not base64", "!." + parts[1] + "." + parts[2], jwt.ErrHeaderBase64},
		{"header with padding", parts[0] + "==." + parts[1] + "." + parts[2], jwt.ErrHeaderBase64},
		{"header is not JSON", b64("x") + "." + parts[1] + "." + parts[2], jwt.ErrHeaderJSON},
		{"header is a list", b64("[]") + "." + parts[1] + "." + parts[2], jwt.ErrHeaderJSON},
		{"payload is not base64", parts[0] + ".!." + parts[2], jwt.ErrPayloadBase64},
		{"payload is null", parts[0] + "." + b64("null") + "." + parts[2], jwt.ErrPayloadJSON},
		{"payload and more", parts[0] + "." + b64(`{}{}`) + "." + parts[2], jwt.ErrPayloadJSON},
		{"signature is not base64", parts[0] + "." + parts[1] + ".!", jwt.ErrSignatureBase64},
		{"another payload", parts[0] + "." + b64(`{"sub":"root"}`) + "." + parts[2], jwt.ErrVerification},
		{"no signature", parts[0] + "." + parts[1] + ".", jwt.ErrVerification},
		{"a stranger with the same key id", stranger.Token(nil), jwt.ErrVerification},
		{"an unknown key id", meshtest.NewIssuer(t, issuer, "other", "RS256").Token(nil), jwt.ErrNoKey},
		{"an extension that must be understood", b64(`{"alg":"RS256","crit":["x"],"x":1}`) + "." + parts[1] + "." + parts[2], jwt.ErrVerification},
		{"iss", who.Sign([]byte(`{"iss":1}`)), jwt.ErrIssuerNotText},
		{"sub", who.Sign([]byte(`{"sub":["a"]}`)), jwt.ErrSubjectNotText},
		{"exp", who.Sign([]byte(`{"exp":"tomorrow"}`)), jwt.ErrExpiresNotNumber},
		{"exp before time", who.Sign([]byte(`{"exp":-1}`)), jwt.ErrExpiresNotNumber},
		{"nbf", who.Sign([]byte(`{"nbf":{}}`)), jwt.ErrNotYetNotNumber},
		{"aud", who.Sign([]byte(`{"aud":1}`)), jwt.ErrAudienceNotText},
		{"aud of a list", who.Sign([]byte(`{"aud":["a",1]}`)), jwt.ErrAudienceNotText},
	}
	for _, tt := range tests {
		if err := verify(k, tt.raw); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
}

func TestTimes(t *testing.T) {
	who := meshtest.NewIssuer(t, issuer, "", "ES256")
	at := func(seconds int) int64 { return now.Unix() + int64(seconds) }
	tests := []struct {
		claims map[string]any
		want   error
	}{
		{nil, nil},
		{map[string]any{"exp": at(1), "nbf": at(-1)}, nil},
		{map[string]any{"exp": at(-59)}, nil}, // clocks differ
		{map[string]any{"exp": at(-61)}, jwt.ErrExpired},
		{map[string]any{"nbf": at(59)}, nil},
		{map[string]any{"nbf": at(61)}, jwt.ErrNotYet},
		{map[string]any{"exp": 1e300}, nil},
		{map[string]any{"exp": 0}, jwt.ErrExpired},
	}
	for _, tt := range tests {
		token, err := jwt.Parse(who.Token(tt.claims))
		if err != nil {
			t.Fatal(err)
		}
		if err := token.Current(now); !errors.Is(err, tt.want) {
			t.Errorf("%v: %v, want %v", tt.claims, err, tt.want)
		}
	}
}

// TestParseKeys: what can't verify is passed over, secrets are refused.
func TestParseKeys(t *testing.T) {
	who := meshtest.NewIssuer(t, issuer, "k", "ES256")
	set := string(meshtest.KeySet(t, who))
	one := strings.TrimSuffix(strings.TrimPrefix(set, `{"keys":[`), "]}")
	good := map[string]string{
		"one":                    set,
		"beside an unknown kind": `{"keys":[{"kty":"new"},` + one + `]}`,
		"beside one that is bad": `{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"},7,` + one + `]}`,
		"beside one to encrypt":  `{"keys":[` + strings.Replace(one, `"sig"`, `"enc"`, 1) + `,` + one + `]}`,
	}
	for name, set := range good {
		k, err := jwt.ParseKeys([]byte(set))
		if err != nil || k.Len() != 1 || verify(k, who.Token(nil)) != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	bad := map[string]string{
		"nothing":     ``,
		"no JSON":     `keys`,
		"no keys":     `{"keys":[]}`,
		"another set": `{"k":1}`,
		"a secret":    `{"keys":[{"kty":"oct","k":"c2VjcmV0"},` + one + `]}`,
		"private":     string(who.PrivateKeySet()),
		"too long":    set + strings.Repeat(" ", jwt.MaxKeySet),
		"too many":    `{"keys":[` + strings.Repeat(one+",", 100) + one + `]}`,
		"to encrypt":  `{"keys":[` + strings.Replace(one, `"sig"`, `"enc"`, 1) + `]}`,
		"a large RSA": `{"keys":[{"kty":"RSA","e":"AQAB","n":"` + strings.Repeat("_", 2048) + `"}]}`,
	}
	for name, set := range bad {
		if k, err := jwt.ParseKeys([]byte(set)); err == nil {
			t.Errorf("%s: %d keys", name, k.Len())
		}
	}
}

func FuzzParse(f *testing.F) {
	who := meshtest.NewIssuer(f, issuer, "k", "ES256")
	k := keys(f, who)
	good := who.Token(map[string]any{"sub": "joe", "aud": []string{"a"}, "exp": 1, "nested": map[string]any{"a": []any{1}}})
	f.Add(good)
	f.Add(b64(`{"alg":"none"}`) + "." + b64(`{}`) + ".")
	f.Add("..")
	f.Add(`{"payload":"e30","signatures":[]}`)
	signed := good[:strings.LastIndexByte(good, '.')+1]
	f.Fuzz(func(t *testing.T, raw string) {
		token, err := jwt.Parse(raw)
		if err != nil {
			if _, ok := errors.AsType[jwt.Error](err); !ok {
				t.Fatalf("%T", err)
			}
			return
		}
		_ = token.Current(now)
		if k.Verify(token) == nil && !strings.HasPrefix(raw, signed) {
			t.Fatal("nobody signed this")
		}
	})
}

func FuzzParseKeys(f *testing.F) {
	who := meshtest.NewIssuer(f, issuer, "k", "EdDSA")
	f.Add(meshtest.KeySet(f, who, meshtest.NewIssuer(f, issuer, "r", "RS256")))
	f.Add([]byte(`{"keys":[{"kty":"oct","k":"AA"}]}`))
	f.Add([]byte(`{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB","x5c":["AA"]}]}`))
	token := who.Token(nil)
	f.Fuzz(func(t *testing.T, set []byte) {
		k, err := jwt.ParseKeys(set)
		if (err == nil) != (k != nil) {
			t.Fatalf("%v and %v", k, err)
		}
		if err == nil {
			_ = verify(k, token)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	for _, algorithm := range []string{"RS256", "ES256", "EdDSA"} {
		who := meshtest.NewIssuer(b, issuer, "k", algorithm)
		k, raw := keys(b, who), who.Token(map[string]any{"sub": "joe", "aud": "shop", "exp": now.Unix()})
		b.Run(algorithm, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := verify(k, raw); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
