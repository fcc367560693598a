package strict

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"podseal.io/podseal/internal/edges"
)

var (
	now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	day = 24 * time.Hour
)

func workloadPeer(ns, name string) edges.Peer {
	return edges.Peer{Kind: edges.KindWorkload, Namespace: ns, Name: name}
}

func pod(ns, workload string, mesh bool) Pod {
	return Pod{
		Namespace: ns, Name: workload + "-1", Workload: workload, Mesh: mesh, Reports: mesh, Since: now.Add(-48 * time.Hour), Created: now.Add(-49 * time.Hour),
		Mode: "PERMISSIVE", Labels: map[string]string{"app": workload, "pod-template-hash": "x"},
	}
}

// call is what api's proxy saw of somebody on port 8080, an hour ago for the last time.
func call(from edges.Peer, security edges.Security, connections uint64, change ...func(*edges.Link)) edges.Link {
	l := edges.Link{Source: from, Destination: workloadPeer("shop", "api"), Port: 8080, Shares: []edges.Share{{Security: security, Connections: connections, First: now.Add(-40 * time.Hour), Last: now.Add(-time.Hour)}}}
	for _, f := range change {
		f(&l)
	}
	return l
}

func last(ago time.Duration) func(*edges.Link) {
	return func(l *edges.Link) { l.Shares[0].Last = now.Add(-ago) }
}

func at(port uint16) func(*edges.Link) { return func(l *edges.Link) { l.Port = port } }

func refusedBy(reason string) func(*edges.Link) {
	return func(l *edges.Link) { l.Shares[0].Refusals = map[string]uint64{reason: 3} }
}

func onlyAPI(ns, w string) bool { return ns == "shop" && w == "api" }

func TestJudge(t *testing.T) {
	api := func(change ...func(*Pod)) []Pod {
		p := pod("shop", "api", true)
		p.Ports = []uint16{8080}
		for _, f := range change {
			f(&p)
		}
		return []Pod{p}
	}
	web, legacy := workloadPeer("shop", "web"), workloadPeer("old", "legacy")
	kubelet := edges.Peer{Kind: edges.KindKubelet, Name: "n1"}
	outside := edges.Peer{Kind: edges.KindOutside, Address: netip.MustParseAddr("198.51.100.1")}
	for name, tc := range map[string]struct {
		pods     []Pod
		callers  []Pod
		injected bool
		graph    edges.Graph
		want     Verdict
		because  string // of the port
		needs    string // of the first caller
	}{
		"only mutual TLS":              {pods: api(), graph: edges.Graph{call(web, edges.MutualTLS, 9)}, want: Go, because: "all that was seen in 24h was mutual TLS"},
		"nobody":                       {pods: api(), want: Go, because: "nobody was seen in 24h"},
		"not long enough":              {pods: api(func(p *Pod) { p.Since = now.Add(-12 * time.Minute) }), want: Wait, because: "observed for 12m of 24h only"},
		"a proxy that says nothing":    {pods: api(func(p *Pod) { p.Reports = false }), want: Wait, because: "1 of 1 pods don't tell"},
		"no proxy":                     {pods: api(func(p *Pod) { p.Mesh = false }), want: NoGo},
		"plaintext, to be injected":    {pods: api(), callers: []Pod{pod("old", "legacy", false)}, graph: edges.Graph{call(legacy, edges.Plaintext, 4)}, want: NoGo, needs: "kubectl label namespace old istio-injection=enabled"},
		"plaintext, to be restarted":   {pods: api(), callers: []Pod{pod("old", "legacy", false)}, injected: true, graph: edges.Graph{call(legacy, edges.Plaintext, 4)}, want: NoGo, needs: "restart it: its pods are older"},
		"plaintext, some restarted":    {pods: api(), callers: []Pod{pod("old", "legacy", false), pod("old", "legacy", true)}, graph: edges.Graph{call(legacy, edges.Plaintext, 4)}, want: NoGo, needs: "restart it: 1 of its 2"},
		"plaintext of the mesh":        {pods: api(), callers: []Pod{pod("old", "legacy", true)}, graph: edges.Graph{call(legacy, edges.Plaintext, 4)}, want: NoGo, needs: "DISABLE"},
		"before it was injected":       {pods: api(), callers: []Pod{pod("old", "legacy", true)}, graph: edges.Graph{call(legacy, edges.Plaintext, 4, last(20*time.Hour))}, want: NoGo, needs: "DISABLE"},
		"before its pods were made":    {pods: api(), callers: []Pod{func() Pod { p := pod("old", "legacy", true); p.Created = now; return p }()}, graph: edges.Graph{call(legacy, edges.Plaintext, 4)}, want: Go, needs: "nothing: all of its pods have a proxy"},
		"too long ago to count":        {pods: api(), graph: edges.Graph{call(legacy, edges.Plaintext, 4, last(25*time.Hour))}, want: Go},
		"gone":                         {pods: api(), graph: edges.Graph{call(legacy, edges.Plaintext, 4)}, want: NoGo, needs: "it is gone"},
		"TLS of the application":       {pods: api(), graph: edges.Graph{call(outside, edges.ForeignTLS, 4)}, want: NoGo, needs: "outside of the mesh"},
		"a TCP probe":                  {pods: api(), graph: edges.Graph{call(kubelet, edges.NotObserved, 400)}, want: Go},
		"a probe that isn't rewritten": {pods: api(func(p *Pod) { p.Probed = []uint16{8080} }), graph: edges.Graph{call(kubelet, edges.Plaintext, 400)}, want: Except, needs: "kubelet's probe can't have a proxy"},
		"such a probe, and others":     {pods: api(func(p *Pod) { p.Probed = []uint16{8080} }), graph: edges.Graph{call(kubelet, edges.Plaintext, 400), call(web, edges.MutualTLS, 1)}, want: NoGo, needs: "let its probes be rewritten"},
		"a proxied port's probe":       {pods: api(), graph: edges.Graph{call(kubelet, edges.Plaintext, 400, at(15020))}, want: Go},
		"the host network":             {pods: api(), graph: edges.Graph{call(kubelet, edges.Plaintext, 400)}, want: NoGo, needs: "host network"},
		"a webhook":                    {pods: api(func(p *Pod) { p.Hooks = []uint16{8080} }), graph: edges.Graph{call(kubelet, edges.ForeignTLS, 4)}, want: Except, needs: "the API server can't have a proxy"},
		"the API server":               {pods: api(), graph: edges.Graph{call(edges.Peer{Kind: edges.KindAPIServer}, edges.ForeignTLS, 4)}, want: Except, needs: "the API server"},
		"a scraper":                    {pods: api(), callers: []Pod{pod("monitoring", "prometheus-k8s", false)}, graph: edges.Graph{call(workloadPeer("monitoring", "prometheus-k8s"), edges.Plaintext, 4, at(9090))}, want: Except, needs: "a scraper of metrics can't have"},
		"a scraper of a shared port":   {pods: api(), callers: []Pod{pod("monitoring", "prometheus-k8s", false)}, graph: edges.Graph{call(workloadPeer("monitoring", "prometheus-k8s"), edges.Plaintext, 4), call(web, edges.MutualTLS, 1)}, want: NoGo, needs: "scrape port 15020"},
		"STRICT":                       {pods: api(func(p *Pod) { p.Mode = "STRICT" }), graph: edges.Graph{call(legacy, edges.NotObserved, 0, refusedBy("plaintext_refused"))}, want: Strict, because: "refuses who is listed", needs: "it is gone"},
		"DISABLE, of mesh clients":     {pods: api(func(p *Pod) { p.Mode = "DISABLE" }), callers: []Pod{pod("shop", "web", true)}, graph: edges.Graph{call(web, edges.Plaintext, 4)}, want: Go, needs: "because the port's mode is DISABLE"},
		"names that were lost":         {pods: api(), graph: edges.Graph{call(edges.Peer{Kind: edges.KindRest}, edges.Plaintext, 4)}, want: NoGo, needs: "no room"},
	} {
		in := Input{Now: now, Window: day, Pods: slices.Concat(tc.pods, tc.callers), Graph: tc.graph, Injected: map[string]bool{"old": tc.injected}}
		r := Judge(in, onlyAPI)
		if r.Verdict != tc.want || len(r.Workloads) != 1 || r.Workloads[0].Verdict != tc.want {
			t.Errorf("%s: %s, want %s: %+v", name, r.Verdict, tc.want, r.Workloads)
			continue
		}
		because, needs := "", ""
		for _, p := range r.Workloads[0].Ports {
			because += p.Because
			for _, c := range p.Callers {
				needs += c.Needs
				if c.Blocks != (tc.want == NoGo) && tc.want != Strict {
					t.Errorf("%s: %s blocks: %v", name, c.Name(), c.Blocks)
				}
			}
		}
		if !strings.Contains(because, tc.because) || !strings.Contains(needs, tc.needs) {
			t.Errorf("%s: %q, %q", name, because, needs)
		}
	}
}

// The worst counts, of ports and of workloads; one that is worse is said so by name.
func TestWorst(t *testing.T) {
	in := Input{Now: now, Window: day, Pods: []Pod{pod("shop", "api", true), pod("shop", "web", true)}, Graph: edges.Graph{call(workloadPeer("old", "x"), edges.Plaintext, 1), call(workloadPeer("shop", "web"), edges.MutualTLS, 1, at(9090))}}
	r := Judge(in, func(ns, _ string) bool { return ns == "shop" })
	if r.Verdict != NoGo || len(r.Workloads) != 2 || r.Workloads[0].Verdict != NoGo || r.Workloads[1].Verdict != Go || r.Workloads[0].Because != "somebody would be refused at 1 of its ports" {
		t.Errorf("%+v", r)
	}
	if ports := r.Workloads[0].Ports; len(ports) != 2 || ports[1].Verdict != Go || ports[1].Mutual != 1 {
		t.Errorf("%+v", ports)
	}
	if r := Judge(in, func(string, string) bool { return false }); r.Verdict != "" {
		t.Errorf("of nothing: %+v", r)
	}
}

func TestPlan(t *testing.T) {
	r := &Report{Workloads: []Workload{
		{Namespace: "shop", Name: "api", Pods: 1, Ports: []Port{{Port: 8080, Verdict: Go}, {Port: 9443, Verdict: Except}}},
		{Namespace: "shop", Name: "web", Pods: 1, Ports: []Port{{Port: 8080, Verdict: Go}}},
		{Namespace: "shop", Name: "out"},
	}}
	in := &Input{Pods: []Pod{pod("shop", "api", true), pod("shop", "web", true), pod("shop", "out", false)}}
	made := Change{Namespace: "shop", Name: "api", Selector: map[string]string{"app": "api"}, Ports: map[uint16]string{9443: "PERMISSIVE"}, Why: "workload api becomes STRICT, but for ports [9443]"}
	for name, tc := range map[string]struct {
		workload string
		present  []Policy
		want     []Change
		notes    int
	}{
		"a namespace": {want: []Change{{Namespace: "shop", Name: "default", Why: "the namespace becomes STRICT"}, made}},
		"one that has one": {
			present: []Policy{{Name: "b", Created: now}, {Name: "a", Created: now}, {Name: "c", Created: now, Selector: map[string]string{"app": "web"}, Mode: "PERMISSIVE"}},
			want:    []Change{{Namespace: "shop", Name: "a", Exists: true, Why: "the namespace becomes STRICT"}, made}, notes: 1,
		},
		"default is taken": {
			present: []Policy{{Name: "default", Selector: map[string]string{"app": "other"}}},
			want:    []Change{{Namespace: "shop", Name: "podseal-strict", Why: "the namespace becomes STRICT"}, made},
		},
	} {
		changes, notes, err := Plan(r, in, "shop", tc.workload, tc.present)
		if err != nil || len(notes) != tc.notes {
			t.Errorf("%s: %q %v", name, notes, err)
		}
		if diff := cmp.Diff(tc.want, changes); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	one := &Report{Workloads: r.Workloads[1:2]}
	changes, _, err := Plan(one, in, "shop", "web", []Policy{{Name: "mine", Selector: map[string]string{"app": "web"}}})
	if err != nil || len(changes) != 1 || changes[0].Name != "mine" || !changes[0].Exists {
		t.Errorf("%+v %v", changes, err)
	}
	in.Pods[0].Labels = map[string]string{"app": "web"} // api's are web's
	if _, _, err := Plan(one, in, "shop", "web", nil); err == nil || !strings.Contains(err.Error(), "no label tells the pods of shop/web from those of api") {
		t.Error(err)
	}
	in.Pods[1].Labels = map[string]string{"pod-template-hash": "x"}
	if _, _, err := Plan(one, in, "shop", "web", nil); err == nil || !strings.Contains(err.Error(), "no label in common") {
		t.Error(err)
	}
}

// Only who was fine before is a reason to go back.
func TestRefused(t *testing.T) {
	report := func(c ...Caller) *Report {
		return &Report{Workloads: []Workload{{Namespace: "shop", Name: "api", Ports: []Port{{Port: 8080, Callers: c}}}}}
	}
	of := func(name string, connections, refused uint64) Caller {
		return Caller{Peer: workloadPeer("old", name), Connections: connections, Refusals: map[string]uint64{"plaintext_refused": refused}}
	}
	before := report(of("fine", 5, 0), of("refused", 0, 4), of("quiet", 5, 0))
	fine, unseen := Refused(before, report(of("fine", 5, 1), of("refused", 0, 9), of("quiet", 5, 0), of("new", 0, 1)))
	if len(fine) != 1 || fine[0].Name() != "old/fine" || len(unseen) != 2 {
		t.Errorf("%+v, %+v", fine, unseen)
	}
}
