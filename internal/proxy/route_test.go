package proxy

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/workload"
)

var update = flag.Bool("update", false, "rewrite the expected transcripts")

// TestRouteScripts runs the transcripts in testdata/route: a small world in
// words, a question, the answer.
// Contract 1.23, 3.1, 3.5, 3.6, 3.16-3.19, 3.22-3.25, 3.27, 3.53, 3.60-3.64, 3.66, 3.68.
// Contract 3.15, 3.34.
func TestRouteScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/route/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scripts", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			script, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := runRouteScript(t, string(script))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(script) {
				t.Errorf("got:\n%s\nwant:\n%s", got, script)
			}
		})
	}
}

// runRouteScript answers every question and returns the script with the answers.
func runRouteScript(t *testing.T, script string) string {
	w := &scriptWorld{pods: map[string]*workload.Workload{}}
	var out strings.Builder
	skip := false // the old answer
	for line := range strings.Lines(script) {
		text := strings.TrimSpace(line)
		switch {
		case text == "":
			skip = false
		case skip:
			continue
		}
		out.WriteString(line)
		switch f := strings.Fields(text); {
		case text == "" || strings.HasPrefix(text, "#"):
		case text == "----":
			out.WriteString(w.answer + "\n")
			skip = true
		default:
			if err := w.do(f[0], f[1:]); err != nil {
				t.Fatalf("%q: %v", text, err)
			}
		}
	}
	return out.String()
}

type scriptWorld struct {
	mesh     workload.Mesh
	pods     map[string]*workload.Workload
	services []*workload.Service
	rules    []*workload.DestinationRule
	entries  []*workload.Entry
	answer   string
}

func (w *scriptWorld) do(verb string, args []string) error {
	switch verb {
	case "mesh":
		w.mesh.Outbound = workload.AllowAny
		if args[0] == "registry-only" {
			w.mesh.Outbound = workload.RegistryOnly
		}
		return nil
	case "workload":
		return w.workload(args)
	case "service":
		return w.service(args)
	case "rule":
		return w.rule(args)
	case "entry":
		return w.entry(args)
	case "route", "allowed":
		return w.route(verb, args)
	}
	return fmt.Errorf("no such verb")
}

func (w *scriptWorld) workload(args []string) error {
	x := &workload.Workload{Name: args[0], Modes: policy.Modes{Default: policy.Permissive, Ports: map[uint16]policy.Mode{}}}
	for _, a := range args[1:] {
		key, value, _ := strings.Cut(a, "=")
		switch key {
		case "ip":
			for ip := range strings.SplitSeq(value, ",") {
				x.Addresses = append(x.Addresses, netip.MustParseAddr(ip))
			}
		case "sa":
			ns, sa, _ := strings.Cut(value, "/")
			x.Namespace = ns
			x.Identity = identity.MustNew("cluster.local", ns, sa)
		case "unknown":
			x.Identity = identity.ID{}
		case "mesh":
			x.Mesh = true
		case "mode":
			name, port, _ := strings.Cut(value, ":")
			m, err := policy.ParseMode(name)
			if err != nil {
				return err
			}
			if port == "" {
				x.Modes.Default = m
			} else {
				n, err := strconv.ParseUint(port, 10, 16)
				if err != nil {
					return err
				}
				x.Modes.Ports[uint16(n)] = m
			}
		default:
			return fmt.Errorf("no such property %q", a)
		}
	}
	x.UID = x.Namespace + "/" + x.Name
	w.pods[x.Name] = x
	return nil
}

func (w *scriptWorld) service(args []string) error {
	s := &workload.Service{Name: args[0], Namespace: "shop", Hostname: args[0] + ".shop.svc.cluster.local"}
	w.services = slices.DeleteFunc(w.services, func(o *workload.Service) bool { return o.Name == s.Name })
	targets := map[uint16]uint16{}
	proto := policy.Auto
	var endpoints []string
	for _, a := range args[1:] {
		switch {
		case strings.HasPrefix(a, "vip="):
			for ip := range strings.SplitSeq(strings.TrimPrefix(a, "vip="), ",") {
				s.Addresses = append(s.Addresses, netip.MustParseAddr(ip))
			}
		case a == "http":
			proto = policy.HTTP
		case a == "tcp":
			proto = policy.TCP
		case strings.Contains(a, "->"):
			from, to, _ := strings.Cut(a, "->")
			f, err1 := strconv.ParseUint(from, 10, 16)
			o, err2 := strconv.ParseUint(to, 10, 16)
			if err1 != nil || err2 != nil {
				return fmt.Errorf("ports %q", a)
			}
			targets[uint16(f)] = uint16(o)
		default:
			endpoints = append(endpoints, a)
		}
	}
	for port := range targets {
		s.Ports = append(s.Ports, workload.ServicePort{Port: port, Protocol: proto})
	}
	for _, e := range endpoints {
		name, ready := strings.CutPrefix(e, "!")
		if p, ok := w.pods[name]; ok {
			for _, a := range p.Addresses {
				s.Endpoints = append(s.Endpoints, workload.Endpoint{Address: a, Ready: !ready, Targets: targets, Workload: p.UID})
			}
			for port, target := range targets {
				p.Ports = append(p.Ports, workload.Port{Target: target, Protocol: proto, ServiceHost: s.Hostname, ServicePort: port})
			}
			continue
		}
		addr, of, _ := strings.Cut(name, "=") // 10.0.0.9=shop/late: of a pod that is not known
		s.Endpoints = append(s.Endpoints, workload.Endpoint{Address: netip.MustParseAddr(addr), Ready: !ready, Targets: targets, Workload: of})
	}
	w.services = append(w.services, s)
	return nil
}

// rule reads `rule <ns>/<name> <host> [tls=MODE] [sni=X] [san=X] [unusable=X]
// [port=N[:MODE]] [max=N]`; `rule none` forgets them all.
func (w *scriptWorld) rule(args []string) error {
	if args[0] == "none" {
		w.rules = nil
		return nil
	}
	ns, name, _ := strings.Cut(args[0], "/")
	r := &workload.DestinationRule{Namespace: ns, Name: name, Host: args[1], ExportTo: []string{"*"}, Policy: &workload.TrafficPolicy{}}
	for _, a := range args[2:] {
		key, value, _ := strings.Cut(a, "=")
		switch key {
		case "tls":
			r.Policy.TLS = tlsOfMode(value)
		case "sni":
			r.Policy.TLS.SNI = value
		case "san":
			r.Policy.TLS.SubjectAltNames = append(r.Policy.TLS.SubjectAltNames, value)
		case "unusable":
			r.Policy.TLS.Unusable = value
		case "passthrough":
			r.Policy.Balance = workload.Passthrough
		case "port":
			port, mode, _ := strings.Cut(value, ":")
			n, err := strconv.ParseUint(port, 10, 16)
			if err != nil {
				return err
			}
			r.Ports = map[uint16]workload.TrafficPolicy{uint16(n): {TLS: tlsOfMode(mode)}}
		default:
			return fmt.Errorf("no such property %q", a)
		}
	}
	w.rules = append(w.rules, r)
	return nil
}

// entry reads `entry <ns>/<name> <host>,<host> [none|static|dns] [internal]
// [addr=A,…] [N->M:tcp|http|tls|auto] [at=A|name|pod|mesh:A[=sa]] [export=ns] [san=X]`;
// `entry none` forgets them all. They are ever younger.
func (w *scriptWorld) entry(args []string) error {
	if args[0] == "none" {
		w.entries = nil
		return nil
	}
	ns, name, _ := strings.Cut(args[0], "/")
	e := &workload.Entry{Namespace: ns, Name: name, Hosts: strings.Split(args[1], ","), External: true, ExportTo: []string{"*"}, Created: time.Unix(int64(len(w.entries)), 0)}
	for _, a := range args[2:] {
		key, value, _ := strings.Cut(a, "=")
		switch {
		case a == "none":
		case a == "static":
			e.Resolution = workload.ResolveStatic
		case a == "dns":
			e.Resolution = workload.ResolveDNS
		case a == "internal":
			e.External = false
		case key == "addr":
			for p := range strings.SplitSeq(value, ",") {
				if ip, err := netip.ParseAddr(p); err == nil {
					e.Addresses = append(e.Addresses, netip.PrefixFrom(ip, ip.BitLen()))
				} else {
					e.Addresses = append(e.Addresses, netip.MustParsePrefix(p))
				}
			}
		case key == "at":
			e.Endpoints = append(e.Endpoints, w.entryAt(value, ns)...)
		case key == "export":
			e.ExportTo = strings.Split(value, ",")
		case key == "san":
			e.SubjectAltNames = append(e.SubjectAltNames, value)
		case strings.Contains(a, "->"):
			p := workload.EntryPort{}
			var proto string
			if _, err := fmt.Sscanf(strings.ReplaceAll(a, ":", " "), "%d->%d %s", &p.Port, &p.Target, &proto); err != nil {
				return err
			}
			p.Naming = map[string]workload.Naming{"http": workload.NamedByHost, "tls": workload.NamedBySNI, "auto": workload.NamedByEither}[proto]
			p.Protocol = map[string]policy.Protocol{"http": policy.HTTP, "tcp": policy.TCP, "tls": policy.TCP}[proto]
			e.Ports = append(e.Ports, p)
		default:
			return fmt.Errorf("no such property %q", a)
		}
	}
	w.entries = append(w.entries, e)
	return nil
}

func (w *scriptWorld) entryAt(value, ns string) []workload.EntryEndpoint {
	if pod, ok := w.pods[value]; ok {
		return []workload.EntryEndpoint{{Address: pod.Addresses[0], Workload: pod.UID}}
	}
	text, mesh := strings.CutPrefix(value, "mesh:")
	text, account, _ := strings.Cut(text, "=")
	x := workload.EntryEndpoint{Mesh: mesh}
	if account != "" {
		x.Identity = identity.MustNew("cluster.local", ns, account)
	}
	if ip, err := netip.ParseAddr(text); err == nil {
		x.Address = ip
	} else {
		x.Name = text
	}
	return []workload.EntryEndpoint{x}
}

func tlsOfMode(mode string) *workload.ClientTLS {
	for m := workload.TLSDisable; m <= workload.TLSIstioMutual; m++ {
		if m.String() == mode {
			return &workload.ClientTLS{Mode: m}
		}
	}
	return nil
}

// route answers `route to=A [not=B] [last]`, and `allowed to=A endpoint=B
// [encrypted]` about an open connection.
func (w *scriptWorld) route(verb string, args []string) error {
	q := question{
		own:    func(a netip.AddrPort) bool { return a.Port() == 15001 || a.Port() == 15006 },
		client: &workload.Workload{Namespace: "shop"},
		pick:   func(c choice) netip.AddrPort { return c.candidates[0] },
	}
	var endpoint netip.AddrPort
	encrypted := false
	for _, a := range args {
		key, value, _ := strings.Cut(a, "=")
		switch key {
		case "to":
			q.dst = netip.MustParseAddrPort(value)
		case "not":
			q.exclude = netip.MustParseAddrPort(value)
		case "endpoint":
			endpoint = netip.MustParseAddrPort(value)
		case "encrypted":
			encrypted = true
		case "named": // what the first bytes name; "named=" is nothing
			q.looked, q.name = true, value
		case "dns": // dns=host:address,address
			host, list, _ := strings.Cut(value, ":")
			if q.resolved == nil {
				q.resolved = map[string][]netip.Addr{}
			}
			q.resolved[host] = nil
			for ip := range strings.SplitSeq(list, ",") {
				if ip != "" {
					q.resolved[host] = append(q.resolved[host], netip.MustParseAddr(ip))
				}
			}
		case "last":
			q.pick = func(c choice) netip.AddrPort { return c.candidates[len(c.candidates)-1] }
		default:
			return fmt.Errorf("no such argument %q", a)
		}
	}
	world := workload.NewWorld(w.mesh, slices.Collect(valuesOf(w.pods)), w.services, w.rules...).AddEntries(w.entries)
	if verb == "allowed" {
		o := opened{dst: q.dst, endpoint: endpoint, namespace: "shop"}
		if r := route(world, q); r.entry.Entry != nil {
			o.entry = &r.entry
		}
		w.answer = "yes"
		if reason := stillAllowed(world, o, encrypted); reason != policy.None {
			w.answer = "cut  reason " + string(reason)
		}
		return nil
	}
	r := route(world, q)
	switch r.verdict {
	case refused:
		if r.lacks.any() {
			w.answer = strings.TrimSpace(fmt.Sprintf("find out  name %v  addresses of %v", r.lacks.name, r.lacks.hosts))
			return nil
		}
		w.answer = fmt.Sprintf("refuse  reason %s", r.reason)
	case mesh:
		expect := r.want.URI()
		if len(r.accept) > 0 {
			expect = "one of " + strings.Join(r.accept, " ")
		}
		w.answer = fmt.Sprintf("mesh  dial %s  expect %s\n      sni %s  alpn %s", r.endpoint, expect, r.sni, strings.Join(r.alpn, ","))
	case originate:
		w.answer = fmt.Sprintf("tls %s  dial %s  sni %s  alpn %q", r.conduct.TLS.Mode, r.endpoint, r.sni, r.alpn)
	default:
		w.answer = fmt.Sprintf("pass  dial %s", r.endpoint)
	}
	return nil
}

func valuesOf(m map[string]*workload.Workload) func(func(*workload.Workload) bool) {
	return func(yield func(*workload.Workload) bool) {
		for _, v := range m {
			if !yield(v) {
				return
			}
		}
	}
}
