package main

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"podseal.io/podseal/internal/ca"
	"podseal.io/podseal/internal/controlplane"
	"podseal.io/podseal/internal/edges"
	"podseal.io/podseal/internal/identity"
)

func sampleReport(t testing.TB, sa string) (*auditReport, *ca.Issuer) {
	t.Helper()
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	issuer, err := ca.NewSelfSigned("cluster.local", now, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	web := edges.Peer{Kind: edges.KindWorkload, Namespace: "shop", Name: "web"}
	client := edges.Edge{Key: edges.Key{Direction: edges.Inbound, Port: 80, Security: edges.Plaintext, Address: netip.MustParseAddr("192.0.2.1")}, First: now, Last: now}
	client.Counts.Connections, client.Counts.BytesSent = 3, 4000
	client.Peer = edges.Peer{Kind: edges.KindOutside, Address: client.Key.Address}
	s := controlplane.Statement{
		Kind: controlplane.StatementKind, TrustDomain: "cluster.local", Since: now.Add(-time.Hour),
		View: controlplane.View{
			Replica: "istiod-1", Now: now,
			Pods:    []controlplane.PodView{{Namespace: "shop", Name: "web-1", Mesh: true}, {Namespace: "shop", Name: "gone-1", Mesh: true}, {Namespace: "old", Name: "x<script>"}},
			Proxies: []controlplane.ProxyView{{Namespace: "shop", Pod: "web-1", Serial: "abc", NotAfter: now, Config: controlplane.ConfigSynced}},
			Edges:   []edges.Report{{Pod: "shop/web-1", Workload: web, Edges: []edges.Edge{client}}},
		},
		Exceptions: []controlplane.Exception{{Object: "PeerAuthentication shop/default", What: "mode PERMISSIVE"}},
	}
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	a, err := issuer.Attest(text, identity.MustNew("cluster.local", "d8-istio", sa), now)
	if err != nil {
		t.Fatal(err)
	}
	return &auditReport{Kind: reportKind, Statements: []*ca.Attestation{a}}, issuer
}

// A report is what was signed and nothing else: whichever byte is changed, in the
// page or in the statements, it does not hold.
func TestReport(t *testing.T) {
	doc, issuer := sampleReport(t, "istiod")
	_, other := sampleReport(t, "istiod")
	for _, html := range []bool{true, false} {
		text, err := doc.encode(html)
		if err != nil {
			t.Fatal(err)
		}
		if s, err := verifyReport(text, issuer.Bundle()); err != nil || len(s) != 1 {
			t.Fatalf("html %v: %v", html, err)
		}
		if _, err := verifyReport(text, other.Bundle()); err == nil {
			t.Error("holds by other roots")
		}
		for i := range text {
			if i%3 != 0 && len(text) > 3000 { // each third byte: seconds, not minutes
				continue
			}
			broken := bytes.Clone(text)
			broken[i] ^= 1
			if _, err := verifyReport(broken, issuer.Bundle()); err == nil {
				t.Errorf("html %v: byte %d of %d is changed, and it holds: %q", html, i, len(text), text[max(0, i-20):min(len(text), i+20)])
			}
		}
		for _, more := range [][]byte{append(bytes.Clone(text), ' '), text[:len(text)-1], nil, []byte("{}"), []byte(`{"kind":"podseal.io/report/v1","statements":[null]}`)} {
			if _, err := verifyReport(more, issuer.Bundle()); err == nil {
				t.Errorf("%.60q holds", more)
			}
		}
		if !html {
			continue
		}
		for _, want := range []string{"outside/192.0.2.1", "3 × plaintext", "PeerAuthentication shop/default", "shop/gone-1", "x&lt;script&gt;", "2026-11-01 12:00:00 UTC"} {
			if !strings.Contains(string(text), want) {
				t.Errorf("the page lacks %q", want)
			}
		}
	}
	stranger, issuer := sampleReport(t, "stranger")
	text, err := stranger.encode(false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := verifyReport(text, issuer.Bundle()); err == nil || !strings.Contains(err.Error(), "not the control plane") {
		t.Errorf("signed by a pod: %v", err)
	}
}

// A document that lacks what a replica would have stated is not written: it says which,
// unless another has spoken for it.
func TestReportLacksAReplica(t *testing.T) {
	statement := func(replica string, peers ...controlplane.PeerView) []byte {
		text, err := json.Marshal(controlplane.Statement{Kind: controlplane.StatementKind, View: controlplane.View{Replica: replica, Peers: peers}})
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	attest := func(answers ...[]byte) ([]*ca.Attestation, error) {
		l := asLooker(t)
		for i, a := range answers {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if a == nil {
					http.Error(w, "no issuer", http.StatusServiceUnavailable)
					return
				}
				_ = json.NewEncoder(w).Encode(ca.Attestation{Statement: a})
			}))
			t.Cleanup(server.Close)
			l.replicas = append(l.replicas, replica{fmt.Sprintf("istiod-%d", i+1), server.URL, server.Client()})
		}
		return l.attest(t.Context(), "")
	}
	for name, tt := range map[string]struct {
		answers [][]byte
		count   int
		want    string // in the error
	}{
		"both":                   {[][]byte{statement("istiod-1"), statement("istiod-2")}, 2, ""},
		"one for both":           {[][]byte{statement("istiod-1", controlplane.PeerView{Replica: "istiod-2"}), nil}, 1, ""},
		"the second for both":    {[][]byte{nil, statement("istiod-2", controlplane.PeerView{Replica: "istiod-1"})}, 1, ""},
		"one fails":              {[][]byte{statement("istiod-1"), nil}, 0, "ask istiod-2: no issuer"},
		"the first fails":        {[][]byte{nil, statement("istiod-2")}, 0, "ask istiod-1: no issuer"},
		"one that can't be read": {[][]byte{statement("istiod-1"), []byte("x")}, 0, "istiod-2: read what is stated"},
		"a peer that is away":    {[][]byte{statement("istiod-1", controlplane.PeerView{Replica: "istiod-2", Error: "refused"}), nil}, 0, "istiod-2"},
		"both fail":              {[][]byte{nil, nil}, 0, "no issuer"},
	} {
		all, err := attest(tt.answers...)
		coded, hasCode := errors.AsType[codedError](err)
		if tt.want == "" && (err != nil || len(all) != tt.count) {
			t.Errorf("%s: %d, %v", name, len(all), err)
		}
		if tt.want != "" && (err == nil || all != nil || !strings.Contains(err.Error(), tt.want) || !hasCode || coded.code != exitUnavailable) {
			t.Errorf("%s: %v, %v", name, all, err)
		}
	}
}

func FuzzVerifyReport(f *testing.F) {
	doc, _ := sampleReport(f, "istiod")
	_, other := sampleReport(f, "istiod")
	for _, html := range []bool{true, false} {
		text, err := doc.encode(html)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if _, err := verifyReport(text, other.Bundle()); err == nil {
			t.Errorf("%q holds", text)
		}
	})
}
