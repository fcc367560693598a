package netns

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/proof"
	"podseal.io/podseal/internal/workload"
)

// town is a mesh in which every kind of address leads somewhere.
type town struct {
	*mesh
	client, web, six *pod // in the mesh; six has IPv6 only
	old              *pod // a pod without a proxy
	legacy           *pod // nobody has heard of it
	pods             map[*pod]*workload.Workload
	roots            *x509.CertPool
}

// TestAddressing: by which address a pod is called makes no difference: a pod of the
// mesh is spoken to in mutual TLS, and whatever isn't gets what the application sends.
// Contract 3.5, 3.13, 3.22, 3.29, 3.58-3.64, 3.66 and 3.68-3.70.
func TestAddressing(t *testing.T) {
	s := newTown(t)
	vip := func(last string) string { return "10.96.0." + last }
	for _, tt := range []struct {
		name    string
		from    *pod
		address string
		answers string         // "": the connection is closed
		dst     netip.AddrPort // where it goes on the wire
		kind    proof.Kind     // what it is there
	}{
		{"3.58 service", s.client, vip("10:80"), "web:8080", at(s.web, 8080), proof.MeshTLS},
		{"3.58 service, its other family", s.client, "[fd96::10]:80", "web:8080", at6(s.web, 8080), proof.MeshTLS},
		{"another service of the same pod", s.client, vip("11:9000"), "web:9000", at(s.web, 9000), proof.MeshTLS},
		{"3.62-3.64 headless, StatefulSet", s.client, "10.88.0.12:5432", "web:5432", at(s.web, 5432), proof.MeshTLS},
		{"3.60-3.61 bare address of a service's port", s.client, "10.88.0.12:8080", "web:8080", at(s.web, 8080), proof.MeshTLS},
		{"3.60 bare address of a port that nobody declares", s.client, "10.88.0.12:7777", "web:7777", at(s.web, 7777), proof.MeshTLS},
		{"3.60 the same by IPv6", s.client, "[fd88::12]:7777", "web:7777", at6(s.web, 7777), proof.MeshTLS},
		{"3.22 mixed endpoints: with a proxy", s.client, vip("12:80"), "web:8080", at(s.web, 8080), proof.MeshTLS},
		{"3.22 mixed endpoints: without", s.client, vip("12:80"), "old:8080", at(s.old, 8080), proof.Plaintext},
		{"bare address of a pod without a proxy", s.client, "10.88.0.14:8080", "old:8080", at(s.old, 8080), proof.Plaintext},
		{"3.66 service without selector", s.client, vip("13:80"), "legacy:8080", at(s.legacy, 8080), proof.Plaintext},
		{"3.59 nothing is ready", s.client, vip("14:80"), "", netip.AddrPort{}, proof.Empty},
		{"3.13 nobody knows it", s.client, "10.88.0.15:8080", "legacy:8080", at(s.legacy, 8080), proof.Plaintext},
		{"3.69 own service", s.web, vip("10:80"), "web:8080", netip.AddrPort{}, proof.Empty},
		{"3.70 own address", s.web, "10.88.0.12:8080", "web:8080", netip.AddrPort{}, proof.Empty},
		{"IPv6 only: service", s.client, "[fd96::20]:80", "six:8080", at6(s.six, 8080), proof.MeshTLS},
		{"IPv6 only: bare address", s.client, "[fd88::16]:8080", "six:8080", at6(s.six, 8080), proof.MeshTLS},
		{"IPv6 only: as a client", s.six, "[fd96::10]:80", "web:8080", at6(s.web, 8080), proof.MeshTLS},
		{"3.29 from the node: NodePort, host network", s.pod, "10.88.0.12:8080", "web:8080", at(s.web, 8080), proof.Plaintext},
		{"from the node, IPv6", s.pod, "[fd88::16]:8080", "six:8080", at6(s.six, 8080), proof.Plaintext},
	} {
		t.Run(tt.name, func(t *testing.T) { s.call(t, tt.from, tt.address, tt.answers, tt.dst, tt.kind) })
	}
	t.Run("3.68 API server", s.askAPI)
	t.Run("3.13 RegistryOnly", s.registryOnly)
}

func at(p *pod, port uint16) netip.AddrPort  { return netip.AddrPortFrom(p.v4, port) }
func at6(p *pod, port uint16) netip.AddrPort { return netip.AddrPortFrom(p.v6, port) }

// call asks until the wanted one answers, of those that take turns, and looks at what
// was on the wire.
func (s *town) call(t *testing.T, from *pod, address, answers string, dst netip.AddrPort, kind proof.Kind) {
	t.Helper()
	for range 2 {
		c := s.capture(t)
		got, err := tell(from, address)
		sum := c.end(t, payload)
		if answers == "" {
			if got != "" || len(sum.Flows) != 0 {
				t.Errorf("answered with %q, %v\n%s", got, err, sum)
			}
			return
		}
		if !strings.HasPrefix(got, answers+" ") {
			continue
		}
		src := from.v6
		if dst.Addr().Is4() {
			src = from.v4
		}
		flows := carried(sum, src, dst)
		if dst.IsValid() && (len(flows) != 1 || !isKind(flows[0], kind)) {
			t.Errorf("on the wire:\n%s", sum)
		}
		if n := sum.Needles()[payload]; (n > 0) != (kind == proof.Plaintext) {
			t.Errorf("the payload is on the wire %d times\n%s", n, sum)
		}
		return
	}
	t.Errorf("%s never answered", answers)
}

func newTown(t *testing.T) *town {
	t.Helper()
	m := newMesh(t)
	s := &town{
		mesh: m, client: m.attach(t, "client", "10.88.0.11", "fd88::11"), web: m.attach(t, "web", "10.88.0.12", "fd88::12"),
		old: m.attach(t, "old", "10.88.0.14", "fd88::14"), legacy: m.attach(t, "legacy", "10.88.0.15", "fd88::15"), six: m.attach(t, "six", "", "fd88::16"),
		pods: map[*pod]*workload.Workload{}, roots: x509.NewCertPool(),
	}
	for name, p := range map[string]*pod{"client": s.client, "web": s.web, "old": s.old, "six": s.six} {
		w := m.world.Pod("shop", name, p.v6)
		w.Addresses, w.Mesh = p.addresses(), p != s.old
		s.pods[p] = w
	}
	ready := func(p *pod) workload.Endpoint { return workload.Endpoint{Ready: true, Workload: s.pods[p].UID} }
	s.service("web", []string{"10.96.0.10", "fd96::10"}, 80, 8080, s.web, ready(s.web))
	s.service("web-admin", []string{"10.96.0.11"}, 9000, 9000, s.web, ready(s.web))
	s.service("db", nil, 5432, 5432, s.web, ready(s.web))
	mixed := s.service("mixed", []string{"10.96.0.12"}, 80, 8080, s.web, ready(s.web))
	mixed.Endpoints = append(mixed.Endpoints, workload.Endpoint{Address: s.old.v4, Ready: true, Workload: "shop/old", Targets: mixed.Endpoints[0].Targets})
	s.service("selectorless", []string{"10.96.0.13"}, 80, 8080, s.legacy, workload.Endpoint{Ready: true})
	s.service("late", []string{"10.96.0.14"}, 80, 8080, s.web, workload.Endpoint{Workload: "shop/web"})
	s.service("six", []string{"fd96::20"}, 80, 8080, s.six, ready(s.six))
	s.service("kubernetes", []string{"10.96.0.1"}, 443, 6443, s.pod, workload.Endpoint{Ready: true})
	m.world.Rules = []*workload.DestinationRule{{
		Namespace: "shop", Name: "turns", Host: "mixed.shop.svc.cluster.local", ExportTo: []string{"*"}, Created: time.Unix(0, 0),
		Policy: &workload.TrafficPolicy{Balance: workload.RoundRobin},
	}}
	m.tell(t)
	for name, p := range map[string]*pod{"web": s.web, "old": s.old, "legacy": s.legacy, "six": s.six} {
		for _, port := range []int{8080, 9000, 5432, 7777} {
			serveEach(t, p.listen(t, fmt.Sprintf(":%d", port)), func(c net.Conn) { answered(c, fmt.Sprintf("%s:%d", name, port)) })
		}
	}
	s.apiServer(t)
	for name, p := range map[string]*pod{"client": s.client, "web": s.web, "six": s.six} {
		m.inject(t, p, name)
	}
	return s
}

// service adds a service of one port and one pod, of which e says the rest.
func (s *town) service(name string, vips []string, port, target uint16, p *pod, e workload.Endpoint) *workload.Service {
	svc := &workload.Service{Name: name, Namespace: "shop", Hostname: name + ".shop.svc.cluster.local", Ports: []workload.ServicePort{{Port: port, Protocol: policy.TCP}}}
	for _, a := range vips {
		svc.Addresses = append(svc.Addresses, netip.MustParseAddr(a))
	}
	e.Targets = map[uint16]uint16{port: target}
	for _, a := range p.addresses() {
		e.Address = a
		svc.Endpoints = append(svc.Endpoints, e)
	}
	s.world.Services = append(s.world.Services, svc)
	return svc
}

// apiServer runs on the node.
func (s *town) apiServer(t *testing.T) {
	t.Helper()
	ca := newAuthority(t, s.mesh)
	cert, _, _ := ca.issue(t, "kubernetes")
	s.roots.AddCert(ca.cert)
	serveEach(t, s.listen(t, ":6443"), func(c net.Conn) {
		x := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
		if x.Handshake() == nil {
			answered(x, "API")
			x.Close()
		}
	})
}

// askAPI: TLS of the application's own passes untouched, to an endpoint that is a
// node's address (contract 3.68).
func (s *town) askAPI(t *testing.T) {
	t.Helper()
	err := s.client.try(app, func() error {
		raw, err := net.DialTimeout("tcp", "10.96.0.1:443", deadline)
		if err != nil {
			return err
		}
		defer raw.Close()
		c := tls.Client(raw, &tls.Config{RootCAs: s.roots, ServerName: "kubernetes"})
		if _, err := io.WriteString(c, payload+"\n"); err != nil {
			return err
		}
		if line, err := bufio.NewReader(c).ReadString('s'); !strings.HasPrefix(line, "API got") {
			return errors.Join(fmt.Errorf("answered with %q", line), err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// registryOnly: what the cluster doesn't know is closed, with a reason; what it
// knows, and what a ServiceEntry names, is reached as before.
func (s *town) registryOnly(t *testing.T) {
	s.world.Mesh.Outbound = workload.RegistryOnly
	s.world.Entries = []*workload.Entry{{
		Namespace: "shop", Name: "legacy", Hosts: []string{"legacy.example"}, Addresses: []netip.Prefix{netip.MustParsePrefix("240.0.0.1/32")}, External: true,
		Resolution: workload.ResolveStatic, ExportTo: []string{"*"}, Created: time.Unix(0, 0),
		Ports:     []workload.EntryPort{{Port: 80, Target: 8080, Protocol: policy.HTTP, Naming: workload.NamedByHost}},
		Endpoints: []workload.EntryEndpoint{{Address: s.legacy.v4}},
	}}
	s.tell(t)
	eventually(t, "RegistryOnly is in force", func() error {
		if got, _ := tell(s.client, "10.88.0.15:7777"); got != "" {
			return fmt.Errorf("answered with %q", got)
		}
		all, err := records(s.client)
		if err == nil && all[len(all)-1].Reason != policy.RegistryOnly {
			err = fmt.Errorf("record %+v", all[len(all)-1])
		}
		return err
	})
	s.call(t, s.client, "240.0.0.1:80", "legacy:8080", at(s.legacy, 8080), proof.Plaintext)
	s.call(t, s.client, "10.96.0.10:80", "web:8080", at(s.web, 8080), proof.MeshTLS)
	s.call(t, s.client, "10.88.0.12:7777", "web:7777", at(s.web, 7777), proof.MeshTLS)
	s.call(t, s.client, "10.96.0.13:80", "legacy:8080", at(s.legacy, 8080), proof.Plaintext)
	s.askAPI(t)
}
