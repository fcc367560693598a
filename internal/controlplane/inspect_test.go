package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	reportv1 "podseal.io/podseal/api/report/v1"
	"podseal.io/podseal/internal/edges"
	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/report"
	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/workload"
	"podseal.io/podseal/internal/xds"
)

// Only who proves with a token for this audience to be somebody that Kubernetes
// lets list edges gets an answer, in the namespace that it may.
func TestWhoMayLook(t *testing.T) {
	viewer := authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: []string{InspectAudience}, User: authenticationv1.UserInfo{Username: "viewer", Groups: []string{"g"}}}
	team := viewer
	team.User.Username = "team"
	proxy := accepted("shop", "web", "web-1") // a good token, for another audience
	known := reviews{"viewer": viewer, "team": team, "proxy": proxy}
	s := &inspector{
		review: func(ctx context.Context, r *authenticationv1.TokenReview) error {
			if !slices.Equal(r.Spec.Audiences, []string{InspectAudience}) {
				t.Errorf("asked for audiences %q", r.Spec.Audiences)
			}
			return known.create(ctx, r)
		},
		authorize: func(_ context.Context, r *authorizationv1.SubjectAccessReview) error {
			if r.Spec.User == "" {
				return errors.New("nobody")
			}
			a := r.Spec.ResourceAttributes
			asked := a.Verb == "list" && a.Group == "podseal.io" && a.Resource == "edges" && slices.Equal(r.Spec.Groups, []string{"g"})
			r.Status.Allowed = asked && (r.Spec.User == "viewer" || (r.Spec.User == "team" && a.Namespace == "shop"))
			return nil
		},
		view: func(_ context.Context, namespace string, parts []string) (*View, error) {
			return &View{Replica: namespace + strings.Join(parts, "+")}, nil
		},
		asking: make(chan struct{}, 1), log: slog.New(slog.DiscardHandler),
	}
	server := httptest.NewServer(s.handler())
	defer server.Close()
	ask := func(authorization, query string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+InspectPath+query, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		if authorization != "" {
			req.Header.Set("Authorization", authorization)
		}
		res, err := server.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(body)
	}
	for name, tc := range map[string]struct {
		authorization, query string
		code                 int
	}{
		"nobody":                  {"", "", 401},
		"no bearer":               {"Basic dmlld2VyOng=", "", 401},
		"unknown token":           {"Bearer x", "", 401},
		"a proxy's token":         {"Bearer proxy", "", 401},
		"huge token":              {"Bearer " + strings.Repeat("x", 17<<10), "", 401},
		"no API server":           {"Bearer unreachable", "", 503},
		"viewer":                  {"Bearer viewer", "", 200},
		"viewer of one namespace": {"Bearer viewer", "?namespace=bank", 200},
		"team":                    {"Bearer team", "?namespace=shop", 200},
		"team, another's":         {"Bearer team", "?namespace=bank", 403},
		"team, all":               {"Bearer team", "", 403},
		"unknown part":            {"Bearer viewer", "?part=secrets", 400},
	} {
		code, body := ask(tc.authorization, tc.query)
		if code != tc.code {
			t.Errorf("%s: %d %s, want %d", name, code, body, tc.code)
		}
		var v View
		if code == 200 && json.Unmarshal([]byte(body), &v) != nil {
			t.Errorf("%s: %s", name, body)
		}
		if code != 200 && strings.Contains(body, "replica") {
			t.Errorf("%s: it got %s", name, body)
		}
	}
	if _, body := ask("Bearer viewer", "?namespace=shop&part=pods&part=edges"); !strings.Contains(body, "shoppods+edges") {
		t.Error(body)
	}
}

func TestPlaces(t *testing.T) {
	node := func(name, ip, cidr string) *corev1.Node {
		return &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDRs: []string{cidr}},
			Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}, {Type: corev1.NodeHostName, Address: name}}},
		}
	}
	pod := func(name, ip string, hostNetwork bool) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name + "-x", Labels: map[string]string{"service.istio.io/workload-name": name}, CreationTimestamp: metav1.Time{Time: epoch}},
			Spec:       corev1.PodSpec{HostNetwork: hostNetwork}, Status: corev1.PodStatus{PodIP: ip, Phase: corev1.PodRunning},
		}
	}
	c := fakeClient(
		node("cp", "192.168.0.1", "10.244.0.0/24"), node("n1", "192.168.0.2", "10.244.1.0/24"), node("n2", "192.168.0.3", "10.244.2.0/24"),
		pod("web", "10.244.1.5", false), pod("agent", "192.168.0.2", true),
		&corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: corev1.ServiceSpec{ClusterIPs: []string{"10.96.0.7"}},
			Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: "203.0.113.9"}}}},
		},
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "headless"}, Spec: corev1.ServiceSpec{ClusterIPs: []string{"None"}}},
		&discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "kubernetes", Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}},
			Endpoints:  []discoveryv1.Endpoint{{Addresses: []string{"192.168.0.1"}}},
		},
	)
	where, err := readPlaces(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		addr string
		d    edges.Direction
		at   time.Duration
		want string
	}{
		"a pod":                      {"10.244.1.5", edges.Inbound, time.Hour, "web"},
		"before that pod was there":  {"10.244.1.5", edges.Inbound, -time.Minute, "gone/10.244.1.5"},
		"a pod that is gone":         {"10.244.2.77", edges.Inbound, 0, "gone/10.244.2.77"},
		"the own node":               {"192.168.0.2", edges.Inbound, 0, "kubelet/n1"},
		"the own node's bridge":      {"10.244.1.1", edges.Inbound, 0, "kubelet/n1"},
		"the own node, called":       {"192.168.0.2", edges.Outbound, 0, "node/n1"},
		"another node":               {"192.168.0.3", edges.Inbound, 0, "node/n2"},
		"another node's tunnel":      {"10.244.2.0", edges.Inbound, 0, "node/n2"},
		"the API server":             {"192.168.0.1", edges.Inbound, 0, "api-server/192.168.0.1"},
		"the API server, called":     {"192.168.0.1", edges.Outbound, 0, "api-server/192.168.0.1"},
		"a service nobody is behind": {"10.96.0.7", edges.Outbound, 0, "service/web"},
		"a load balancer":            {"203.0.113.9", edges.Outbound, 0, "load-balancer/web"},
		"the world":                  {"8.8.8.8", edges.Outbound, 0, "outside/8.8.8.8"},
	} {
		if got := where.resolve(netip.MustParseAddr(tc.addr), "n1", tc.d, epoch.Add(tc.at)).String(); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}

func TestView(t *testing.T) {
	body, err := wire.AppendWorkload(nil, &workload.Workload{
		UID: "shop/web-1", Name: "web-1", Namespace: "shop", WorkloadName: "web", Identity: identity.MustNew("cluster.local", "shop", "web"), Mesh: true,
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
		Modes:     policy.Modes{Default: policy.Strict, Ports: map[uint16]policy.Mode{8080: policy.Permissive}},
		Ports:     []workload.Port{{Target: 8080, Protocol: policy.HTTP, ServiceHost: "web.shop.svc.cluster.local", ServicePort: 80}},
	})
	if err != nil {
		t.Fatal(err)
	}
	store := xds.NewStore()
	store.Replace(wire.TypeWorkload, map[string][]byte{"shop/web-1": body})
	store.Replace(wire.TypeMesh, map[string][]byte{"mesh": nil})
	store.Replace(wire.TypeService, map[string][]byte{})
	generation := func(g uint64) map[string]xds.TypeStatus {
		return map[string]xds.TypeStatus{wire.TypeMesh: {Generation: 1}, wire.TypeWorkload: {Generation: g}, wire.TypeService: {Generation: 1}}
	}
	peer := func(ns, pod string, types map[string]xds.TypeStatus) xds.PeerStatus {
		return xds.PeerStatus{Peer: "cluster.local/ns/" + ns + "/sa/x", Node: xds.Node{ID: "sidecar~10.0.0.1~" + pod + "." + ns + "~" + ns + ".svc", Metadata: map[string]string{"VERSION": "v1"}}, Connected: epoch, Types: types}
	}
	rejected := generation(1)
	rejected[wire.TypeService] = xds.TypeStatus{Generation: 1, Rejected: []string{"shop/bad"}, NackText: "1 of 1 rejected"}
	web := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web-1", Labels: map[string]string{"service.istio.io/workload-name": "web"}}, Spec: corev1.PodSpec{NodeName: "n1"}, Status: corev1.PodStatus{PodIP: "10.0.0.1"}}
	plain := edges.Edge{Key: edges.Key{Direction: edges.Inbound, Security: edges.Plaintext, Port: 8080, Address: netip.MustParseAddr("8.8.8.8")}, Counts: edges.Counts{Connections: 3}, Last: epoch}
	toWeb := edges.Edge{Key: edges.Key{Direction: edges.Outbound, Security: edges.MutualTLS, Port: 8080, Identity: "cluster.local/ns/shop/sa/web", Workload: "shop/web"}, Counts: edges.Counts{Connections: 2}, Last: epoch}
	v := &viewer{
		cache: fakeClient(web), store: store, replica: "istiod-1", now: func() time.Time { return epoch },
		peers: func() []xds.PeerStatus {
			return []xds.PeerStatus{peer("bank", "vault-1", generation(0)), peer("shop", "old-1", rejected), peer("shop", "web-1", generation(1))}
		},
		reports: func() []report.Report {
			return []report.Report{
				{Pod: report.Pod{Namespace: "bank", Name: "vault-1"}, Proxy: &reportv1.Proxy{}, Edges: []edges.Edge{toWeb, plain}},
				{Pod: report.Pod{Namespace: "bank", Name: "done-1"}, Proxy: &reportv1.Proxy{}, Gone: epoch, Edges: []edges.Edge{plain}},
				{Pod: report.Pod{Namespace: "shop", Name: "web-1", Identity: "cluster.local/ns/shop/sa/web"}, Proxy: &reportv1.Proxy{Version: "v1", Serial: "ab", NotAfter: 1_800_000_000, Connections: 4, LoopbackSegmentBytes: 65536}, Edges: []edges.Edge{plain}},
			}
		},
	}
	got, err := v.view(t.Context(), "shop", nil)
	if err != nil {
		t.Fatal(err)
	}
	sameAddr := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	if diff := cmp.Diff([]PodView{{
		Name: "web-1", Namespace: "shop", Workload: "web", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Identity: "cluster.local/ns/shop/sa/web", Mesh: true,
		Mode: "STRICT", PortModes: map[uint16]string{8080: "PERMISSIVE"},
		Ports: []PortView{{Port: 8080, Protocol: "http", Service: "web.shop.svc.cluster.local:80", Mode: "PERMISSIVE"}},
	}}, got.Pods, sameAddr); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]ProxyView{
		{Pod: "old-1", Namespace: "shop", Version: "v1", Config: ConfigRejected, Rejected: []string{"shop/bad"}, Reason: "1 of 1 rejected", Connected: epoch, Identity: "cluster.local/ns/shop/sa/x"},
		{Pod: "web-1", Namespace: "shop", Workload: "web", Node: "n1", Version: "v1", Config: ConfigSynced, Connected: epoch, Identity: "cluster.local/ns/shop/sa/web", Serial: "ab", NotAfter: time.Unix(1_800_000_000, 0), Connections: 4, Reports: true, LoopbackSegment: 65536},
	}, got.Proxies); diff != "" {
		t.Error(diff)
	}
	// of others only what they say of this namespace
	if len(got.Edges) != 2 || got.Edges[0].Pod != "bank/vault-1" || len(got.Edges[0].Edges) != 1 || got.Edges[1].Workload.Name != "web" {
		t.Errorf("%+v", got.Edges)
	}
	g := edges.Build(got.Edges)
	if len(g) != 2 || g[0].Source.String() != "outside/8.8.8.8" || g[1].Destination.Name != "web" {
		t.Errorf("%+v", g)
	}
	all, err := v.view(t.Context(), "", []string{PartProxies})
	if err != nil {
		t.Fatal(err)
	}
	if len(all.Proxies) != 3 || all.Proxies[0].Config != ConfigStale || all.Pods != nil || all.Edges != nil {
		t.Errorf("%+v", all)
	}
}

// A proxy that doesn't ask for a kind is older than the control plane; one that has
// just connected may be about to.
func TestOldProxies(t *testing.T) {
	types := map[string]xds.TypeStatus{}
	for _, typeURL := range wire.Types() {
		types[typeURL] = xds.TypeStatus{}
	}
	v := &viewer{store: xds.NewStore(), now: func() time.Time { return epoch.Add(time.Minute) }, reports: func() []report.Report { return nil }}
	show := func(connected time.Time) ProxyView {
		v.peers = func() []xds.PeerStatus {
			return []xds.PeerStatus{{Node: xds.Node{ID: "sidecar~ip~web.shop~d"}, Connected: connected, Types: types}}
		}
		return v.proxies("", nil)[0]
	}
	if p := show(epoch); p.Config != ConfigSynced || len(p.Lacks) > 0 {
		t.Errorf("a new proxy: %+v", p)
	}
	delete(types, wire.TypeRequestAuthentication)
	delete(types, wire.TypeServiceEntry)
	if p := show(epoch); p.Config != ConfigOutdated || strings.Join(p.Lacks, " ") != "RequestAuthentication ServiceEntry" {
		t.Errorf("an old one: %+v", p)
	}
	if p := show(epoch.Add(55 * time.Second)); len(p.Lacks) > 0 {
		t.Errorf("one that has just come: %+v", p)
	}
	types[wire.TypeMesh] = xds.TypeStatus{Rejected: []string{"mesh"}}
	if p := show(epoch); p.Config != ConfigRejected || len(p.Lacks) != 2 {
		t.Errorf("an old one that refuses something: %+v", p)
	}
}
