package controlplane

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"podseal.io/podseal/internal/ca"
	"podseal.io/podseal/internal/settings"
)

// listOf is the revocation list of a CA, as PEM, from epoch until then.
func listOf(t testing.TB, by *ca.Issuer, until time.Time, revoked ...*x509.Certificate) []byte {
	t.Helper()
	block, _ := pem.Decode(by.Files().Key)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	l := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: epoch.Add(-time.Hour), NextUpdate: until}
	for _, c := range revoked {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: epoch})
	}
	der, err := x509.CreateRevocationList(rand.Reader, l, by.Certificate(), key.(crypto.Signer))
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// plugged is Secret cacerts, with revocation lists.
func plugged(i *ca.Issuer, roots []byte, lists ...[]byte) *corev1.Secret {
	data := i.Files().Data()
	if roots != nil {
		data[ca.RootFile] = roots
	}
	if len(lists) > 0 {
		data[revocationFile] = bytes.Join(lists, nil)
	}
	return secret(settings.PluggedCASecret, data)
}

// TestRevocationLists: contract 4.39, 4.40. The lists beside a plugged CA are in force if
// peers will accept what it signs; bad ones change nothing, and at the start nothing is in
// force with them. What isn't in force is said by name.
func TestRevocationLists(t *testing.T) {
	one, two := newSelfSigned(t, epoch), newSelfSigned(t, epoch)
	later, soon := epoch.Add(24*time.Hour), epoch.Add(time.Minute)
	good, newer, short := listOf(t, one, later), listOf(t, one, later, two.Certificate()), listOf(t, one, soon)
	ended := listOf(t, one, epoch.Add(-time.Minute))
	suicide := listOf(t, one, later, one.Certificate())
	forged := func() []byte {
		block, _ := pem.Decode(good)
		block.Bytes[len(block.Bytes)-1] ^= 1
		return pem.EncodeToMemory(block)
	}()
	both := append(append([]byte{}, one.Files().Root...), two.Files().Root...)
	type step struct {
		secret  *corev1.Secret
		now     time.Time
		revoked []byte // in force afterwards
		issuer  *ca.Issuer
		says    string // of what is not in force
	}
	for name, steps := range map[string][]step{
		"good, newer, none": {
			{plugged(one, nil, good), epoch, good, one, ""}, {plugged(one, nil, newer), epoch, newer, one, ""}, {plugged(one, nil), epoch, nil, one, ""},
		},
		"bad ones leave the last good one": {
			{plugged(one, nil, good), epoch, good, one, ""},
			{plugged(one, nil, []byte("x")), epoch, good, one, "Secret cacerts: ca-crl.pem: parse revocation lists: "},
			{plugged(one, nil, forged), epoch, good, one, "is not signed by that CA"},
			{plugged(one, nil, suicide), epoch, good, one, "the chain of the CA that signs: a certificate is revoked"},
			{plugged(one, nil, listOf(t, two, later)), epoch, good, one, "a CA has no revocation list"},
			{plugged(one, nil, ended), epoch, good, one, "a revocation list has ended"},
			{plugged(one, nil, newer), epoch, newer, one, ""},
		},
		"bad ones beside a CA that has none": {
			{plugged(one, nil), epoch, nil, one, ""}, {plugged(one, nil, forged), epoch, nil, one, "is not signed"},
		},
		"bad ones at the start": {
			{plugged(one, nil, forged), epoch, nil, nil, "is not signed"}, {plugged(one, nil, good), epoch, good, one, ""},
		},
		"one that ends stays, and so does one that had ended at the start": {
			{plugged(one, nil, short), epoch, short, one, ""},
			{plugged(one, nil, short), later, short, one, "proxies refuse mutual TLS until there is a newer one"},
			{plugged(one, nil, ended), later, ended, one, "until there is a newer one"},
			{plugged(one, nil, listOf(t, one, later.Add(time.Hour))), later, nil, one, ""},
		},
		"a CA of another root needs its list": {
			{plugged(one, nil, good), epoch, good, one, ""},
			{plugged(one, both, good), epoch, good, one, ""},
			{plugged(two, both, good), epoch, good, one, "a CA has no revocation list"},
			{plugged(two, both, good, listOf(t, two, later)), epoch, nil, two, ""},
		},
	} {
		now := epoch
		var out bytes.Buffer
		a := newAuthority(authorityConfig{Namespace: settings.Namespace, Now: func() time.Time { return now }, Log: slog.New(slog.NewTextHandler(&out, nil))})
		a.see(settingsSecret(t, settings.Default("")), false)
		for i, s := range steps {
			now = s.now
			a.see(s.secret, false)
			if i == 0 {
				a.start()
			}
			issuer, err := a.Issuer()
			if s.issuer == nil && err == nil || s.issuer != nil && (err != nil || !issuer.Certificate().Equal(s.issuer.Certificate())) {
				t.Fatalf("%s, step %d: another issuer: %v", name, i+1, err)
			}
			if want := s.revoked; want != nil && !bytes.Equal(a.RevokedPEM(), want) || want == nil && s.says != "" && a.RevokedPEM() != nil {
				t.Errorf("%s, step %d: other lists are in force", name, i+1)
			}
			switch problem := a.Problem(); {
			case s.says == "" && problem != nil:
				t.Errorf("%s, step %d: %v", name, i+1, problem)
			case s.says != "" && (problem == nil || !strings.Contains(problem.Error(), s.says) || !strings.Contains(out.String(), revocationFile)):
				t.Errorf("%s, step %d: problem %v, want %q", name, i+1, problem, s.says)
			}
		}
	}
}

// TestRevocationListsAreTold: proxies are told, and the root's ConfigMap names what is in
// force for podseal check. A root without a list is named. Contract 4.39, 4.40.
func TestRevocationListsAreTold(t *testing.T) {
	one, two := newSelfSigned(t, epoch), newSelfSigned(t, epoch)
	var out bytes.Buffer
	a := newAuthority(authorityConfig{Namespace: settings.Namespace, Now: at(epoch), Log: slog.New(slog.NewTextHandler(&out, nil))})
	a.see(settingsSecret(t, settings.Default("")), false)
	a.see(plugged(one, append(append([]byte{}, one.Files().Root...), two.Files().Root...)), false)
	a.start()
	c := fakeClient(namespace(settings.Namespace, nil), namespace("shop", nil))
	writer := &rootWriter{client: c, authority: a}
	named := func(ns string) string {
		t.Helper()
		if _, err := writer.Ensure(t.Context(), ns); err != nil {
			t.Fatal(err)
		}
		if again, err := writer.Ensure(t.Context(), ns); err != nil || again {
			t.Errorf("it was written twice: %v", err)
		}
		var cm corev1.ConfigMap
		if err := c.Get(t.Context(), types.NamespacedName{Namespace: ns, Name: settings.RootConfigMap}, &cm); err != nil {
			t.Fatal(err)
		}
		return cm.Annotations[settings.AnnotationRevocations]
	}
	if got := named(settings.Namespace); got != "" {
		t.Errorf("there is no list, and it is called %q", got)
	}
	changed := a.Changed()
	a.see(plugged(one, append(append([]byte{}, one.Files().Root...), two.Files().Root...), listOf(t, one, epoch.Add(time.Hour))), false)
	select {
	case <-changed:
	default:
		t.Error("nobody was told")
	}
	if !strings.Contains(out.String(), "peers whose certificates lead to this root are refused") {
		t.Error(out.String())
	}
	if got := a.revocationsLeft(epoch); got != 3600 {
		t.Errorf("%v seconds are left", got)
	}
	if got := named(settings.Namespace); len(got) != 16 {
		t.Errorf("the list is called %q", got)
	}
	if got := named("shop"); got != "" {
		t.Errorf("another namespace has %q", got)
	}
	a.see(plugged(one, nil), false)
	if got := named(settings.Namespace); got != "" {
		t.Errorf("the list is gone, and called %q", got)
	}
}

// actions are those of Events.
type actions []string

func (a *actions) Eventf(_, _ runtime.Object, _, _, action, _ string, _ ...any) {
	*a = append(*a, action)
}

// TestEventsAreToldApart: what is wrong now is not counted as what was wrong before.
func TestEventsAreToldApart(t *testing.T) {
	var got actions
	a := newAuthority(authorityConfig{Namespace: settings.Namespace, Now: at(epoch), Events: &got, Log: slog.New(slog.DiscardHandler)})
	for _, text := range []string{"one", "two", "one"} {
		a.warn(badRevocations, text)
	}
	if len(got) != 3 || got[0] == got[1] || got[0] != got[2] || len(got[0]) > 128 {
		t.Errorf("actions %q", got)
	}
}
