package workload_test

import (
	"net/netip"
	"testing"

	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/workload"
)

func TestWorld(t *testing.T) {
	ip := netip.MustParseAddr
	web := &workload.Workload{UID: "shop/web-1", Addresses: []netip.Addr{ip("10.0.0.2"), ip("fd00::2")}, Ports: []workload.Port{{Target: 8080, Protocol: policy.HTTP, ServiceHost: "web.shop.svc.cluster.local", ServicePort: 80}}}
	svc := &workload.Service{Namespace: "shop", Name: "web", Hostname: "web.shop.svc.cluster.local", Addresses: []netip.Addr{ip("10.96.0.5")}, Ports: []workload.ServicePort{{Port: 80}}, Endpoints: []workload.Endpoint{{Address: ip("10.0.0.2"), Ready: true, Targets: map[uint16]uint16{80: 8080}}}}
	other := &workload.Service{Namespace: "shop", Name: "alias", Hostname: "alias.shop.svc.cluster.local", Ports: svc.Ports, Endpoints: svc.Endpoints}
	w := workload.NewWorld(workload.Mesh{}, []*workload.Workload{web}, []*workload.Service{svc, other})

	for _, a := range []string{"10.0.0.2", "fd00::2", "::ffff:10.0.0.2"} {
		if x, ok := w.WorkloadAt(ip(a)); !ok || x != web {
			t.Errorf("WorkloadAt(%s) = %v, %v", a, x, ok)
		}
	}
	if _, ok := w.WorkloadAt(ip("10.0.0.3")); ok {
		t.Error("an address that nobody has is found")
	}
	if r, ok := w.ServiceAt(netip.MustParseAddrPort("[::ffff:10.96.0.5]:80")); !ok || r.Service != svc || r.Port.Port != 80 {
		t.Errorf("ServiceAt = %v, %v", r, ok)
	}
	if _, ok := w.ServiceAt(netip.MustParseAddrPort("10.96.0.5:81")); ok {
		t.Error("a port that the service doesn't have is found")
	}
	if r, ok := w.ServiceOf(netip.MustParseAddrPort("10.0.0.2:8080")); !ok || r.Service != other { // the same one however they are listed
		t.Errorf("ServiceOf = %v, %v", r, ok)
	}
	if p := web.PortOf(8080); p.ServicePort != 80 {
		t.Errorf("PortOf(8080) = %v", p)
	}
	if p := web.PortOf(9); p.Protocol != policy.Auto || p.ServiceHost != "" || p.Target != 9 { // contract 1.25
		t.Errorf("PortOf(9) = %v", p)
	}
}

// Two pods claim an address while the news of one that has gone is on its way:
// which of them counts is no matter of chance, and the mesh's wins (design D11).
func TestSharedAddress(t *testing.T) {
	at := []netip.Addr{netip.MustParseAddr("10.0.0.2")}
	plain := &workload.Workload{UID: "shop/a", Addresses: at}
	web, db := &workload.Workload{UID: "shop/b", Addresses: at, Mesh: true}, &workload.Workload{UID: "shop/c", Addresses: at, Mesh: true}
	for _, all := range [][]*workload.Workload{{plain, web, db}, {db, web, plain}, {web, plain, db}} {
		if x, _ := workload.NewWorld(workload.Mesh{}, all, nil).WorkloadAt(at[0]); x != web {
			t.Errorf("the address is that of %s", x.UID)
		}
	}
}
