package discovery

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Which object sets a mode is by the same rules as which mode it is.
func TestOrigins(t *testing.T) { // contract 1.7-1.13, 1.27, 5.29
	policies := []*unstructured.Unstructured{}
	for _, text := range []string{
		"{metadata: {namespace: d8-istio, name: mesh}, spec: {mtls: {mode: STRICT}}}",
		"{metadata: {namespace: shop, name: ns}, spec: {}}",
		"{metadata: {namespace: shop, name: api}, spec: {selector: {matchLabels: {app: api}}, mtls: {mode: PERMISSIVE}, portLevelMtls: {9090: {mode: DISABLE}, 80: {}}}}",
	} {
		obj := object[unstructured.Unstructured](t, "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, "+text[1:])
		policies = append(policies, obj)
	}
	pod := func(text string) *corev1.Pod { return object[corev1.Pod](t, text) }
	c := Cluster{PeerAuthentications: policies, RootNamespace: "d8-istio", Settings: testSettings()}
	got := Origins(c, []*corev1.Pod{
		pod(`{metadata: {namespace: shop, name: api, labels: {app: api}, annotations: {traffic.sidecar.istio.io/excludeInboundPorts: "7070"}}}`),
		pod(`{metadata: {namespace: shop, name: web, annotations: {traffic.sidecar.istio.io/includeInboundPorts: "80"}}}`),
		pod(`{metadata: {namespace: other, name: x}}`),
	})
	mesh := OriginPolicy{Key: Key{KindPeerAuthentication, "d8-istio", "mesh"}, Scope: "mesh"}
	ns := OriginPolicy{Key: Key{KindPeerAuthentication, "shop", "ns"}, Scope: "namespace"}
	own := OriginPolicy{Key: Key{KindPeerAuthentication, "shop", "api"}, Scope: "selector", SetsDefault: true, Ports: []uint16{80, 9090}}
	meshSets := mesh
	meshSets.SetsDefault = true
	want := []Origin{
		{Policies: []OriginPolicy{mesh, ns, own}, Uncaptured: []uint16{7070}},
		{Policies: []OriginPolicy{meshSets, ns}, Only: true, OnlyPorts: []uint16{80}},
		{Policies: []OriginPolicy{meshSets}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got[0].Captures(7070) || !got[0].Captures(80) || got[1].Captures(81) || !got[1].Captures(80) || !got[2].Captures(1) {
		t.Error("captured ports")
	}
}
