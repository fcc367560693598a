package proxy

import (
	"fmt"
	"net/netip"
	"testing"

	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/workload"
)

// BenchmarkRoute asks in a world of 10,000 pods and 1,000 services, by service
// address and by bare pod address.
func BenchmarkRoute(b *testing.B) {
	told := meshtest.NewWorld(nil)
	var pods []*workload.Workload
	for i := range 10_000 {
		pods = append(pods, told.Pod("shop", fmt.Sprintf("pod-%d", i), netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})))
	}
	for i := range 1000 {
		vip := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), 80)
		told.Service(fmt.Sprintf("service-%d", i), vip, policy.HTTP, 8080, pods[i*10:i*10+10]...)
	}
	w := workload.NewWorld(told.Mesh, told.Workloads, told.Services)
	for name, dst := range map[string]string{"service": "10.96.1.2:80", "pod": "10.1.3.4:8080", "unknown": "192.0.2.1:443"} {
		b.Run(name, func(b *testing.B) {
			q := question{
				dst: netip.MustParseAddrPort(dst), own: func(netip.AddrPort) bool { return false },
				pick: func(c choice) netip.AddrPort { return c.candidates[0] },
			}
			b.ReportAllocs()
			for b.Loop() {
				if r := route(w, q); (r.verdict == mesh) != (name != "unknown") {
					b.Fatalf("%s: %+v", name, r)
				}
			}
		})
	}
}
