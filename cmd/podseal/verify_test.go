package main

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podseal.io/podseal/internal/controlplane"
	"podseal.io/podseal/internal/proof"
)

// The table puts connections that are alike together, the worst first, and names
// peers; the exit code follows the worst.
func TestVerified(t *testing.T) {
	client, web := netip.MustParseAddr("10.0.0.9"), netip.MustParseAddr("10.0.0.7")
	names := namesOf([]controlplane.PodView{{Namespace: "shop", Name: "client-1", Workload: "client", Addresses: []netip.Addr{client}}})
	sealed := proof.Seen{Inbound: true, Client: netip.AddrPortFrom(client, 4000), Server: netip.AddrPortFrom(web, 80), Kind: "mesh TLS", TLSBytes: 20_000}
	second := sealed
	second.Client = netip.AddrPortFrom(client, 4001)
	plain := sealed
	plain.Client, plain.Kind, plain.Protocol, plain.TLSBytes, plain.PlainBytes = netip.MustParseAddrPort("192.0.2.1:5000"), "plaintext", "HTTP/1.1", 0, 7
	claim := func(s proof.Seen, security string) proof.Claim {
		return proof.Claim{Client: s.Client, Server: s.Server, Security: security}
	}
	seen := proof.Observation{
		From: time.Unix(0, 0), To: time.Unix(30, 0), Packets: 12, Proxy: "v1", Seen: []proof.Seen{sealed, second, plain},
		Claims: []proof.Claim{claim(sealed, proof.SaidMutualTLS), claim(second, proof.SaidMutualTLS), claim(plain, proof.SaidPlaintext)},
	}
	permissive := verified{Namespace: "shop", Pod: "web-1"}
	permissive.fill(&seen, names)
	o, strictly := verifyOptions{}, verifyOptions{noPlaintext: true}
	if err := o.verdict([]verified{permissive}); err != nil || permissive.Result != "agrees" || permissive.Plaintext != 7 || permissive.Encrypted != 40_000 {
		t.Errorf("%v %+v", err, permissive)
	}
	if err := strictly.verdict([]verified{permissive}); !errors.Is(err, errSilent) {
		t.Errorf("--no-plaintext: %v", err)
	}
	seen.Claims = seen.Claims[:2]
	leak := verified{Namespace: "shop", Pod: "web-1"}
	leak.fill(&seen, names)
	if err := o.verdict([]verified{leak}); !errors.Is(err, errSilent) || leak.Result != "LEAK" {
		t.Errorf("%v %+v", err, leak)
	}
	var b bytes.Buffer
	printVerified(&b, &leak, false)
	want := strings.Split(`pod/shop/web-1: 30s, 12 packets, 0 lost, 40 kB in TLS, 7 B in plaintext: LEAK
DIRECTION   PEER          PORT   ON_THE_WIRE            PROXY_SAYS   CONNS   TLS     PLAINTEXT   VERDICT
in          192.0.2.1     80     plaintext (HTTP/1.1)   -            1       0 B     7 B         LEAK: plaintext that does not go through the proxy
in          shop/client   80     mesh TLS               mutual_tls   2       40 kB   0 B         agrees
`, "\n")
	for i, line := range strings.Split(b.String(), "\n") {
		if i >= len(want) || line != want[i] {
			t.Errorf("line %d: %q", i, line)
		}
	}
	lossy := proof.Observation{Proxy: "v1", Lost: 1}
	unproven := verified{}
	unproven.fill(&lossy, nil)
	if err := o.verdict([]verified{unproven}); !errors.Is(err, errSilent) || unproven.Result != "unproven" {
		t.Errorf("with lost packets: %v %+v", err, unproven)
	}
	if err := o.verdict([]verified{{Error: "no", Result: "not observed"}}); !errors.Is(err, errSilent) {
		t.Errorf("not observed: %v", err)
	}
}

// The container that captures has the image of the pod's own proxy, whichever kind
// of sidecar it is.
func TestProxyImage(t *testing.T) {
	native := &corev1.Pod{Spec: corev1.PodSpec{InitContainers: []corev1.Container{{Name: "istio-init", Image: "a"}, {Name: "istio-proxy", Image: "b"}}, Containers: []corev1.Container{{Name: "app", Image: "c"}}}}
	classic := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "c"}, {Name: "istio-proxy", Image: "d"}}}}
	for pod, want := range map[*corev1.Pod]string{native: "b", classic: "d", {}: ""} {
		if got := proxyImage(pod); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
