package proxy

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"podseal.io/podseal/internal/explain"
	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/workload"
	"podseal.io/podseal/internal/xds"
)

// What `podseal can` says of the way to a destination is what this proxy does.
func TestExplainAgreesWithRoute(t *testing.T) {
	over := map[verdict]string{pass: explain.OverPlaintext, mesh: explain.OverMutualTLS, originate: explain.OverTLS, refused: explain.OverNothing}
	pick := func(r *rand.Rand, n int) int { return r.IntN(n) }
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 3))
		w := meshtest.NewWorld(nil)
		from, to := w.Pod("shop", "web", netip.MustParseAddr("10.0.0.1")), w.Pod("shop", "api", netip.MustParseAddr("10.0.0.2"))
		to.Mesh = r.IntN(4) > 0
		to.Modes.Default = policy.Mode(1 + pick(r, 3))
		target := []uint16{8080, 15021}[r.IntN(2)]
		w.Service("api", netip.MustParseAddrPort("10.96.0.1:80"), policy.Protocol(pick(r, 3)), target, to)
		if r.IntN(3) > 0 {
			w.Rules = []*workload.DestinationRule{{Namespace: "shop", Name: "r", Host: "api.shop.svc.cluster.local", ExportTo: []string{"*"}, Policy: &workload.TrafficPolicy{TLS: randomTLS(r)}}}
			if r.IntN(2) == 0 {
				w.Rules[0].Ports = map[uint16]workload.TrafficPolicy{80: {TLS: randomTLS(r)}}
			}
		}
		resources := map[string]map[string][]byte{}
		w.Tell(t, func(typeURL string, upserts []xds.Resource, _ []string) map[string]error {
			for _, r := range upserts {
				if resources[typeURL] == nil {
					resources[typeURL] = map[string][]byte{}
				}
				resources[typeURL][r.Name] = r.Body
			}
			return nil
		})
		m, err := explain.Read(resources, func(string, uint16) bool { return true })
		if err != nil {
			t.Fatal(err)
		}
		world := workload.NewWorld(w.Mesh, w.Workloads, w.Services, w.Rules...)
		does := route(world, question{
			dst: netip.MustParseAddrPort("10.96.0.1:80"), own: func(netip.AddrPort) bool { return false }, client: from,
			pick: func(c choice) netip.AddrPort { return c.candidates[0] },
		})
		says := m.Can(explain.Question{Source: from.UID, Destination: to.UID})
		want := over[does.verdict]
		if does.verdict == mesh && len(does.accept) > 0 || does.verdict == mesh && !to.Mesh { // the handshake fails
			want = explain.OverNothing
		}
		if len(says) != 1 || says[0].Over != want {
			t.Fatalf("seed %d: %+v; the proxy: %v %v", seed, says, does.verdict, does.detail)
		}
	}
}

func randomTLS(r *rand.Rand) *workload.ClientTLS {
	t := &workload.ClientTLS{Mode: workload.TLSMode(1 + r.IntN(4)), CACertificates: "/ca"}
	switch {
	case r.IntN(3) == 0:
		return nil
	case t.Mode == workload.TLSMutual:
		t.ClientCertificate, t.PrivateKey = "/crt", "/key"
	case t.Mode == workload.TLSIstioMutual:
		t.CACertificates = ""
		if r.IntN(2) == 0 {
			t.SubjectAltNames = []string{"spiffe://cluster.local/ns/shop/sa/other"}
		}
	}
	if r.IntN(4) == 0 {
		t.Unusable = "no"
	}
	return t
}
