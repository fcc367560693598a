package discovery

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// An endpoint says which pod it is, known or not, so that a proxy that has not
// heard of the pod doesn't take it for one outside the mesh (design D11). The
// address of a host-network pod is its node's.
// Contract 3.55.
func TestEndpointsNameTheirPods(t *testing.T) {
	port := int32(8080)
	ref := func(kind, ns, name string) *corev1.ObjectReference {
		return &corev1.ObjectReference{Kind: kind, Namespace: ns, Name: name}
	}
	slice := &discoveryv1.EndpointSlice{
		Ports: []discoveryv1.EndpointPort{{Port: &port}},
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"10.0.0.1"}, TargetRef: ref("Pod", "shop", "web-1")},
			{Addresses: []string{"10.0.0.2"}, TargetRef: ref("Pod", "", "web-2")},
			{Addresses: []string{"10.0.0.3"}, TargetRef: ref("Pod", "shop", "agent")},
			{Addresses: []string{"10.0.0.4"}, TargetRef: ref("Node", "", "n1")},
			{Addresses: []string{"10.0.0.5"}},
		},
	}
	svc := &corev1.Service{}
	svc.Namespace = "shop"
	want := []string{"shop/web-1", "shop/web-2", "", "", ""}
	got := buildEndpoints(svc, []*discoveryv1.EndpointSlice{slice}, map[string]uint16{"": 80}, map[string]bool{"shop/agent": true})
	if len(got) != len(want) {
		t.Fatalf("%d endpoints", len(got))
	}
	for i, e := range got {
		if e.Workload != want[i] {
			t.Errorf("%s is of %q, want %q", e.Address, e.Workload, want[i])
		}
	}
}
