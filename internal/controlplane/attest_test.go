package controlplane

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"podseal.io/podseal/internal/ca"
	"podseal.io/podseal/internal/discovery"
)

func thing(kind, ns, name string, spec map[string]any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{"kind": kind, "metadata": map[string]any{"namespace": ns, "name": name}, "spec": spec}}
}

// A statement names every object that lets traffic be anything else than mutual
// TLS, is signed as the control plane, and is made only when all is known.
func TestAttest(t *testing.T) {
	mtls := func(mode string) map[string]any { return map[string]any{"mode": mode} }
	cluster := &discovery.Cluster{
		RootNamespace: "d8-istio",
		PeerAuthentications: []*unstructured.Unstructured{
			thing("PeerAuthentication", "d8-istio", "default", map[string]any{"mtls": mtls("STRICT")}),
			thing("PeerAuthentication", "shop", "default", map[string]any{"mtls": mtls("PERMISSIVE"), "portLevelMtls": map[string]any{"80": mtls("DISABLE"), "81": mtls("STRICT")}}),
			thing("PeerAuthentication", "other", "default", map[string]any{"mtls": mtls("DISABLE")}),
		},
		DestinationRules: []*unstructured.Unstructured{
			thing("DestinationRule", "shop", "db", map[string]any{"host": "db", "trafficPolicy": map[string]any{
				"tls": mtls("ISTIO_MUTUAL"), "portLevelSettings": []any{map[string]any{"tls": mtls("DISABLE")}},
			}, "subsets": []any{map[string]any{"trafficPolicy": map[string]any{"tls": mtls("SIMPLE")}}}}),
		},
		Pods: []*corev1.Pod{
			{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web-1", Annotations: map[string]string{"traffic.sidecar.istio.io/excludeInboundPorts": "9000", "traffic.sidecar.istio.io/includeInboundPorts": "*"}}},
		},
	}
	want := []Exception{
		{"DestinationRule shop/db", "db is called with TLS mode DISABLE"},
		{"DestinationRule shop/db", "db is called with TLS mode SIMPLE"},
		{"PeerAuthentication shop/default", "mode PERMISSIVE"},
		{"PeerAuthentication shop/default", "port 80: mode DISABLE"},
		{"Pod shop/web-1", "excludeInboundPorts: 9000 is not captured"},
	}
	if diff := cmp.Diff(want, exceptions(cluster, "shop")); diff != "" {
		t.Error(diff)
	}
	if got := exceptions(cluster, ""); len(got) != len(want)+1 {
		t.Errorf("all namespaces: %+v", got)
	}
	if got := exceptions(&discovery.Cluster{RootNamespace: "d8-istio"}, ""); len(got) != 1 || got[0].Object != "PeerAuthentication d8-istio/default" {
		t.Errorf("the default: %+v", got)
	}

	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	issuer, err := ca.NewSelfSigned("cluster.local", now, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &attester{
		view: func(_ context.Context, namespace string, _ []string) (*View, error) {
			return &View{Replica: "istiod-1", Started: now.Add(-time.Hour), Now: now, Pods: []PodView{{Namespace: namespace, Name: "web-1"}}}, nil
		},
		cluster: func() *discovery.Cluster { return cluster },
		issuer:  func() (*ca.Issuer, error) { return issuer, nil },
		domain:  func() string { return "cluster.local" },
		own:     "d8-istio", now: func() time.Time { return now },
	}
	signed, err := a.attest(t.Context(), "shop")
	if err != nil {
		t.Fatal(err)
	}
	if id, err := signed.Verify(issuer.Bundle(), now); err != nil || id.String() != "cluster.local/ns/d8-istio/sa/istiod" {
		t.Errorf("signed by %s, %v", id, err)
	}
	var s Statement
	if err := json.Unmarshal(signed.Statement, &s); err != nil || s.Kind != StatementKind || s.Pods[0].Namespace != "shop" || len(s.Exceptions) != len(want) || !s.Since.Equal(now.Add(-time.Hour)) {
		t.Errorf("%+v, %v", s, err)
	}
	a.cluster = func() *discovery.Cluster { return nil }
	if _, err := a.attest(t.Context(), ""); err == nil {
		t.Error("stated what isn't known")
	}
	a.issuer = func() (*ca.Issuer, error) { return nil, errors.New("no root") }
	if _, err := a.attest(t.Context(), ""); err == nil {
		t.Error("signed without a key")
	}
}
