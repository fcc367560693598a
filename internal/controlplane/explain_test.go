package controlplane

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"podseal.io/podseal/internal/discovery"
	"podseal.io/podseal/internal/explain"
	"podseal.io/podseal/internal/settings"
	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/xds"
)

func specified(kind, ns, name string, spec map[string]any) *unstructured.Unstructured {
	obj := newPolicy(kind)
	obj.SetNamespace(ns)
	obj.SetName(name)
	obj.SetCreationTimestamp(metav1.NewTime(epoch))
	obj.Object["spec"] = spec
	return obj
}

func meshPod(ns, name, ip string, inMesh bool) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Labels: map[string]string{"app": name}, CreationTimestamp: metav1.NewTime(epoch)},
		Spec:       corev1.PodSpec{ServiceAccountName: name}, Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip},
	}
	if inMesh {
		p.Labels["security.istio.io/tlsMode"] = "istio"
	}
	return p
}

// testExplainer knows shop/web and shop/api of the mesh and old/legacy outside;
// only shop/web may reach the namespace, which is STRICT.
func testExplainer(each ...func(typeURL, name string) xds.Holding) *explainer {
	c := &discovery.Cluster{
		Settings: settings.Default(""), RootNamespace: testNamespace,
		Pods: []*corev1.Pod{meshPod("shop", "web", "10.0.0.1", true), meshPod("shop", "api", "10.0.0.2", true), meshPod("old", "legacy", "10.0.0.3", false)},
		PeerAuthentications: []*unstructured.Unstructured{
			specified(discovery.KindPeerAuthentication, testNamespace, "mesh", map[string]any{"mtls": map[string]any{"mode": "PERMISSIVE"}}),
			specified(discovery.KindPeerAuthentication, "shop", "strict", map[string]any{"mtls": map[string]any{"mode": "STRICT"}}),
		},
		AuthorizationPolicies: []*unstructured.Unstructured{specified(discovery.KindAuthorizationPolicy, "shop", "from-web", map[string]any{
			"rules": []any{map[string]any{"from": []any{map[string]any{"source": map[string]any{"principals": []any{"cluster.local/ns/shop/sa/web"}}}}}},
		})},
	}
	store := xds.NewStore()
	resources, _ := discovery.Build(*c)
	for _, typeURL := range wire.Types() {
		store.Replace(typeURL, resources[typeURL])
	}
	return &explainer{
		store: store, cluster: func() *discovery.Cluster { return c }, replica: "r", now: func() time.Time { return epoch.Add(time.Hour) },
		each: func(visit func(xds.PeerStatus, func(typeURL, name string) xds.Holding)) {
			for i, holding := range each {
				visit(xds.PeerStatus{Node: xds.Node{ID: "sidecar~10.0.0.2~api.shop~shop.svc.cluster.local"}, Connected: epoch.Add(time.Duration(i) * time.Second)}, holding)
			}
		},
	}
}

func verdicts(a *ExplainAnswer) []string {
	var out []string
	for _, x := range a.Answers {
		out = append(out, x.Source+">"+x.Destination+" "+x.Verdict)
	}
	return out
}

// What is asked is answered from what proxies are told; with objects, from what
// they would be told, and nothing of it stays.
func TestExplain(t *testing.T) {
	e := testExplainer()
	ask := func(q *ExplainRequest) *ExplainAnswer {
		t.Helper()
		a, err := e.explain(q)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	q := &ExplainRequest{Sources: []string{"shop/web", "old/legacy"}, Destinations: []string{"shop/api"}}
	want := []string{"shop/web>shop/api yes", "old/legacy>shop/api no"}
	if diff := cmp.Diff(want, verdicts(ask(q))); diff != "" {
		t.Error(diff)
	}
	tried := *q
	tried.Objects = []*unstructured.Unstructured{
		specified(discovery.KindPeerAuthentication, "shop", "strict", map[string]any{"mtls": map[string]any{"mode": "PERMISSIVE"}}),
		specified(discovery.KindAuthorizationPolicy, "shop", "no-web", map[string]any{"action": "DENY", "rules": []any{map[string]any{"from": []any{map[string]any{"source": map[string]any{"namespaces": []any{"shop"}}}}}}}),
		specified(discovery.KindAuthorizationPolicy, "shop", "from-web", map[string]any{"rules": []any{map[string]any{}}}),
		specified(discovery.KindPeerAuthentication, "shop", "again", map[string]any{}),
	}
	a := ask(&tried)
	if diff := cmp.Diff([]string{"shop/web>shop/api no", "old/legacy>shop/api yes"}, verdicts(a)); diff != "" {
		t.Error(diff)
	}
	if len(a.Objects) != 4 || !a.Objects[0].Accepted || a.Objects[3].Reason != discovery.ReasonShadowed { // contract 1.16
		t.Errorf("%+v", a.Objects)
	}
	if diff := cmp.Diff(want, verdicts(ask(q))); diff != "" {
		t.Errorf("afterwards: %s", diff)
	}
	bad := *q
	bad.Objects = []*unstructured.Unstructured{specified(discovery.KindPeerAuthentication, "shop", "x", nil)}
	bad.Objects[0].SetKind("Gateway")
	_, theirs := errors.AsType[badQuestion](func() error { _, err := e.explain(&bad); return err }())
	_, tooMany := errors.AsType[badQuestion](func() error { _, err := e.explain(&ExplainRequest{Pods: make([]string, 65)}); return err }())
	if !theirs || !tooMany {
		t.Error("a bad question is not the asker's fault")
	}
	if _, err := (&explainer{cluster: func() *discovery.Cluster { return nil }}).explain(q); !errors.Is(err, errNothingPublished) {
		t.Error(err)
	}
}

// A policy is enforced at a pod when its proxy has acknowledged it, and what says
// that it holds there.
func TestEnforced(t *testing.T) {
	holds := func(own, it xds.Holding) func(typeURL, name string) xds.Holding {
		return func(typeURL, _ string) xds.Holding {
			if typeURL == wire.TypeWorkload {
				return own
			}
			return it
		}
	}
	q := &ExplainRequest{Pods: []string{"shop/api", "shop/web", "old/legacy", "shop/none"}}
	for name, tc := range map[string]struct {
		each []func(typeURL, name string) xds.Holding
		want string
	}{
		"not connected":       {nil, EnforcedAway},
		"acknowledged":        {[]func(typeURL, name string) xds.Holding{holds(xds.Held, xds.Held)}, EnforcedYes},
		"the pod isn't yet":   {[]func(typeURL, name string) xds.Holding{holds(xds.Waiting, xds.Held)}, EnforcedWaiting},
		"refused":             {[]func(typeURL, name string) xds.Holding{holds(xds.Held, xds.Rejected)}, EnforcedRejected},
		"not asked for":       {[]func(typeURL, name string) xds.Holding{holds(xds.Held, xds.Unasked)}, EnforcedWaiting},
		"the newest stream's": {[]func(typeURL, name string) xds.Holding{holds(xds.Held, xds.Rejected), holds(xds.Held, xds.Held)}, EnforcedYes},
	} {
		a, err := testExplainer(tc.each...).explain(q)
		if err != nil {
			t.Fatal(err)
		}
		api, legacy := a.Pods[0], a.Pods[2]
		if len(a.Pods) != 4 || len(api.Authorization) != 1 || api.Authorization[0].Enforced != tc.want || api.Authorization[0].Key() != "shop/from-web" {
			t.Errorf("%s: %+v", name, api)
		}
		if legacy.Mesh || len(legacy.Peer) != 1 || len(a.Pods[3].Authorization) != 0 || a.Pods[1].Authorization[0].Enforced != EnforcedAway {
			t.Errorf("%s: %+v", name, a.Pods)
		}
		if got := fmt.Sprint(api.Peer); got != "[{d8-istio mesh mesh false []} {shop strict namespace true []}]" {
			t.Errorf("%s: %s", name, got)
		}
	}
	tried := *q
	tried.Objects = []*unstructured.Unstructured{specified(discovery.KindAuthorizationPolicy, "shop", "new", map[string]any{})}
	a, err := testExplainer(holds(xds.Held, xds.Held)).explain(&tried)
	if err != nil || len(a.Pods[0].Authorization) != 2 || a.Pods[0].Authorization[0].Enforced != EnforcedWaiting {
		t.Errorf("%v %+v", err, a)
	}
}

// JoinExplain keeps of each pod what the replica says that its proxy is connected to.
func TestJoinExplain(t *testing.T) {
	of := func(replica, enforced string) *ExplainAnswer {
		return &ExplainAnswer{Replica: replica, Pods: []PodPolicies{{Pod: "shop/api", Authorization: []PolicyView{{Applied: explain.Applied{Name: "p"}, Enforced: enforced}}}}}
	}
	for _, all := range [][]*ExplainAnswer{{of("a", EnforcedAway), of("b", EnforcedYes)}, {of("a", EnforcedYes), of("b", EnforcedAway)}} {
		if got := JoinExplain(all); got.Pods[0].Authorization[0].Enforced != EnforcedYes || !strings.Contains(got.Replica, ",") {
			t.Errorf("%+v", got)
		}
	}
}
