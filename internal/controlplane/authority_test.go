package controlplane

import (
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podseal.io/podseal/internal/settings"
)

func at(now time.Time) func() time.Time { return func() time.Time { return now } }

// TestSourceOrder is contract 4.32: cacerts, then the settings, then our own.
func TestSourceOrder(t *testing.T) {
	own, plugged, configured := newSelfSigned(t, epoch), newSelfSigned(t, epoch), newSelfSigned(t, epoch)
	plain, withCA := settings.Default(""), settings.Default("")
	withCA.CA = settings.CA{Cert: string(configured.Files().Cert), Key: string(configured.Files().Key), Root: string(configured.Files().Root)}
	ownSecret := secret(settings.CASecret, own.Files().Data())
	pluggedSecret := secret(settings.PluggedCASecret, plugged.Files().Data())
	tlsNames := secret(settings.PluggedCASecret, map[string][]byte{"tls.crt": plugged.Files().Cert, "tls.key": plugged.Files().Key, "ca.crt": plugged.Files().Root})
	partial := secret(settings.PluggedCASecret, map[string][]byte{"ca-cert.pem": plugged.Files().Cert})

	for name, tc := range map[string]struct {
		secrets []*corev1.Secret
		want    *x509.Certificate
		source  string
	}{
		"our own":                            {[]*corev1.Secret{ownSecret, settingsSecret(t, plain)}, own.Certificate(), sourceSelfSigned},
		"settings win over our own":          {[]*corev1.Secret{ownSecret, settingsSecret(t, withCA)}, configured.Certificate(), sourceSettings},
		"cacerts wins over all":              {[]*corev1.Secret{ownSecret, settingsSecret(t, withCA), pluggedSecret}, plugged.Certificate(), sourcePlugged},
		"cacerts, names of TLS":              {[]*corev1.Secret{settingsSecret(t, plain), tlsNames}, plugged.Certificate(), sourcePlugged},
		"partial cacerts is not passed over": {[]*corev1.Secret{ownSecret, settingsSecret(t, plain), partial}, nil, ""},
		"no settings yet":                    {[]*corev1.Secret{ownSecret}, nil, ""},
		"nothing":                            {nil, nil, ""},
	} {
		for _, order := range [][]*corev1.Secret{tc.secrets, reversed(tc.secrets)} {
			a := newTestAuthority(t, at(epoch), order...)
			issuer, err := a.Issuer()
			switch {
			case tc.want == nil && err == nil:
				t.Errorf("%s: an issuer is in force", name)
			case tc.want != nil && err != nil:
				t.Errorf("%s: %v", name, err)
			case tc.want != nil && (!issuer.Certificate().Equal(tc.want) || a.source != tc.source):
				t.Errorf("%s: issuer from %s", name, a.source)
			}
		}
	}
}

func reversed(in []*corev1.Secret) []*corev1.Secret {
	out := slices.Clone(in)
	slices.Reverse(out)
	return out
}

// TestBadInputKeepsTheLast: whatever comes, what was good stays in force and the
// problem is said.
func TestBadInputKeepsTheLast(t *testing.T) {
	own, stranger := newSelfSigned(t, epoch), newSelfSigned(t, epoch)
	renewed, err := own.Renew(epoch.Add(time.Hour), zeroless{})
	if err != nil {
		t.Fatal(err)
	}
	good := settings.Default("")
	start := func() *authority {
		return newTestAuthority(t, at(epoch.Add(2*time.Hour)), settingsSecret(t, good), secret(settings.CASecret, own.Files().Data()))
	}
	for name, tc := range map[string]struct {
		secret  *corev1.Secret
		gone    bool
		want    *x509.Certificate
		problem string
	}{
		"another root at once (4.35)":   {secret(settings.PluggedCASecret, stranger.Files().Data()), false, own.Certificate(), "neither contains"},
		"cacerts that is no CA":         {secret(settings.PluggedCASecret, map[string][]byte{"ca-cert.pem": []byte("x")}), false, own.Certificate(), "ca-key.pem is missing"},
		"same key, new root (4.34)":     {secret(settings.CASecret, renewed.Files().Data()), false, renewed.Certificate(), ""},
		"the Secret goes":               {secret(settings.CASecret, nil), true, own.Certificate(), ""},
		"settings that are no JSON":     {secret(settings.SettingsSecret, map[string][]byte{settingsKey: []byte("{")}), false, own.Certificate(), "settings.json"},
		"settings without trust domain": {secret(settings.SettingsSecret, map[string][]byte{settingsKey: []byte("{}")}), false, own.Certificate(), "trust domain"},
		"settings go":                   {secret(settings.SettingsSecret, nil), true, own.Certificate(), ""},
		"a Secret that is none of ours": {secret("other", nil), false, own.Certificate(), ""},
	} {
		a := start()
		a.see(tc.secret, tc.gone)
		issuer, err := a.Issuer()
		if err != nil || !issuer.Certificate().Equal(tc.want) {
			t.Errorf("%s: %v, another issuer than expected: %v", name, err, issuer)
		}
		if s, err := a.Settings(); err != nil || s.TrustDomain != "cluster.local" {
			t.Errorf("%s: settings %v %v", name, s.TrustDomain, err)
		}
		problem := ""
		if p := a.Problem(); p != nil {
			problem = p.Error()
		}
		if (tc.problem == "") != (problem == "") || !strings.Contains(problem, tc.problem) {
			t.Errorf("%s: problem %q, want %q", name, problem, tc.problem)
		}
	}
}

// zeroless is randomness for serial numbers in tests.
type zeroless struct{}

func (zeroless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(i + 1)
	}
	return len(p), nil
}

// TestServingCertificate is contract 4.7: its names, and its renewal in time,
// when the issuer changes and when the cluster's domain does.
func TestServingCertificate(t *testing.T) {
	now := epoch
	own := newSelfSigned(t, epoch)
	a := newTestAuthority(t, func() time.Time { return now }, settingsSecret(t, settings.Default("")), secret(settings.CASecret, own.Files().Data()))
	leaf := func() *x509.Certificate {
		c, err := a.TLSConfig().GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return c.Leaf
	}
	first := leaf()
	for _, name := range []string{"istiod.d8-istio.svc", "istiod.d8-istio", "istiod", "istiod.d8-istio.svc.cluster.local"} {
		if err := first.VerifyHostname(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := first.Verify(x509.VerifyOptions{Roots: own.Bundle().Pool(), DNSName: "istiod.d8-istio.svc", CurrentTime: now}); err != nil {
		t.Error(err)
	}
	resolve := func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.resolve()
	}
	if now = now.Add(servingTTL / 3); true {
		resolve()
	}
	if !leaf().Equal(first) {
		t.Error("renewed after a third of its life")
	}
	changed := a.Changed()
	now = now.Add(servingTTL / 3)
	resolve()
	second := leaf()
	if second.Equal(first) {
		t.Error("not renewed after half of its life")
	}
	select {
	case <-changed:
	default:
		t.Error("nobody was told")
	}
	other := settings.Default("corp.example")
	a.see(settingsSecret(t, other), false)
	if err := leaf().VerifyHostname("istiod.d8-istio.svc.corp.example"); err != nil {
		t.Error(err)
	}
	renewed, err := own.Renew(now, zeroless{})
	if err != nil {
		t.Fatal(err)
	}
	before := leaf()
	a.see(secret(settings.CASecret, renewed.Files().Data()), false)
	if leaf().Equal(before) {
		t.Error("not made anew by the new issuer")
	}
}

func TestBeforeTheFirstList(t *testing.T) {
	a := newAuthority(authorityConfig{Namespace: testNamespace, Now: at(epoch)})
	a.see(settingsSecret(t, settings.Default("")), false)
	if _, err := a.Issuer(); !errors.Is(err, errNoIssuer) {
		t.Errorf("issuer: %v", err)
	}
	if _, err := a.Settings(); !errors.Is(err, errNoSettings) {
		t.Errorf("settings: %v", err)
	}
	if _, needed := a.needsRoot(); needed {
		t.Error("a root would be made before it is known whether there is one")
	}
	if _, err := a.TLSConfig().GetCertificate(nil); err == nil {
		t.Error("a serving certificate from nothing")
	}
	if a.TrustDomain() != "" {
		t.Error("a trust domain from nothing")
	}
}
