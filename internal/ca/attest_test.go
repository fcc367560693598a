package ca

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"slices"
	"testing"
	"time"

	"podseal.io/podseal/internal/identity"
)

// Whatever byte of a statement, its signature or its certificate is changed, it
// does not hold; nor by another root, nor at a time when its certificate was not good.
func TestAttest(t *testing.T) {
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	issuer, err := NewSelfSigned("cluster.local", now, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewSelfSigned("cluster.local", now, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id := identity.MustNew("cluster.local", "d8-istio", "istiod")
	a, err := issuer.Attest([]byte("all is well"), id, now)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := a.Verify(issuer.Bundle(), now.Add(time.Minute)); err != nil || got != id {
		t.Fatalf("%s, %v", got, err)
	}
	for name, broken := range map[string]func(a *Attestation){
		"statement":      func(a *Attestation) { a.Statement[3] ^= 1 },
		"longer":         func(a *Attestation) { a.Statement = append(a.Statement, '\n') },
		"signature":      func(a *Attestation) { a.Signature[10] ^= 1 },
		"no certificate": func(a *Attestation) { a.Chain = nil },
		"other text":     func(a *Attestation) { a.Chain[0] += "\n" },
		"a text before":  func(a *Attestation) { a.Chain[0] = "x\n" + a.Chain[0] },
		"garbage":        func(a *Attestation) { a.Chain = []string{"garbage"} },
		"another's": func(a *Attestation) {
			b, err := other.Attest(a.Statement, id, now)
			if err != nil {
				t.Fatal(err)
			}
			a.Chain = b.Chain
		},
	} {
		b := &Attestation{slices.Clone(a.Statement), slices.Clone(a.Chain), slices.Clone(a.Signature)}
		broken(b)
		if _, err := b.Verify(issuer.Bundle(), now); !errors.Is(err, ErrAttestation) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, at := range map[string]time.Time{"before": now.Add(-time.Hour), "after": now.Add(48 * time.Hour)} {
		if _, err := a.Verify(issuer.Bundle(), at); !errors.Is(err, ErrAttestation) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := a.Verify(other.Bundle(), now); !errors.Is(err, ErrAttestation) {
		t.Errorf("another root: %v", err)
	}
}

// Nothing that comes from outside holds, or breaks anything.
func FuzzAttestation(f *testing.F) {
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	issuer, err := NewSelfSigned("cluster.local", now, rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	foreign, err := NewSelfSigned("cluster.local", now, rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	a, err := foreign.Attest([]byte("{}"), identity.MustNew("cluster.local", "d8-istio", "istiod"), now)
	if err != nil {
		f.Fatal(err)
	}
	seed, err := json.Marshal(a)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte(`{"chain":["x"]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var a Attestation
		if json.Unmarshal(b, &a) != nil {
			return
		}
		if id, err := a.Verify(issuer.Bundle(), now); err == nil {
			t.Errorf("%s is taken for signed by %s", b, id)
		}
	})
}
