package discovery

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func TestGoverns(t *testing.T) { // contract 1.7-1.18, 3.41, 6.1
	c := Cluster{RootNamespace: "d8-istio", Settings: testSettings()}
	for _, text := range []string{
		"PeerAuthentication d8-istio/mesh {}", "PeerAuthentication shop/api {selector: {matchLabels: {app: api}}}",
		"AuthorizationPolicy d8-istio/all {}", "AuthorizationPolicy d8-istio/apis {selector: {matchLabels: {app: api}}}", "AuthorizationPolicy shop/ns {}",
		"RequestAuthentication d8-istio/all {}", "RequestAuthentication shop/api {selector: {matchLabels: {app: api}}}",
		"DestinationRule shop/own {host: api, exportTo: [.]}", "DestinationRule shop/some {host: api, workloadSelector: {matchLabels: {app: web}}}", "DestinationRule shop/every {host: api}",
		"ServiceEntry shop/out {hosts: [a.example], exportTo: [.], ports: [{number: 80, name: http, protocol: HTTP}]}",
	} {
		parts := strings.SplitN(text, " ", 3)
		ns, name, _ := strings.Cut(parts[1], "/")
		obj := object[unstructured.Unstructured](t, "{apiVersion: x/v1, kind: "+parts[0]+", metadata: {namespace: "+ns+", name: "+name+"}, spec: "+parts[2]+"}")
		list := c.PoliciesOf(parts[0])
		*list = append(*list, obj)
	}
	for _, text := range []string{"shop api istio Running", "shop web istio Running", "bank api istio Running", "shop out none Running", "shop done istio Succeeded"} {
		f := strings.Fields(text)
		c.Pods = append(c.Pods, object[corev1.Pod](t, "{metadata: {namespace: "+f[0]+", name: "+f[1]+", labels: {app: "+f[1]+", security.istio.io/tlsMode: "+f[2]+"}}, spec: {serviceAccountName: x}, status: {phase: "+f[3]+"}}"))
	}
	got := map[string]string{}
	for key, pods := range Governs(c) {
		got[key.String()] = strings.Join(pods, " ")
	}
	want := map[string]string{
		"PeerAuthentication d8-istio/mesh": "shop/api shop/web bank/api", "PeerAuthentication shop/api": "shop/api",
		"AuthorizationPolicy d8-istio/all": "shop/api shop/web bank/api", "AuthorizationPolicy d8-istio/apis": "shop/api bank/api", "AuthorizationPolicy shop/ns": "shop/api shop/web",
		"RequestAuthentication d8-istio/all": "shop/api shop/web bank/api", "RequestAuthentication shop/api": "shop/api",
		"DestinationRule shop/own": "shop/api shop/web", "DestinationRule shop/some": "shop/web", "DestinationRule shop/every": "shop/api shop/web bank/api",
		"ServiceEntry shop/out": "shop/api shop/web",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
