package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"podseal.io/podseal/internal/discovery"
	"podseal.io/podseal/internal/edges"
)

// adviceView has shop/api, watched for two days, and its callers of an hour ago.
func adviceView(security edges.Security, callers ...string) *View {
	v := &View{
		Now:      epoch,
		Pods:     []PodView{{Namespace: "shop", Name: "api-1", Workload: "api", Mesh: true, Mode: "PERMISSIVE", Created: epoch.Add(-48 * time.Hour), Labels: map[string]string{"app": "api"}}},
		Proxies:  []ProxyView{{Namespace: "shop", Pod: "api-1", Reports: true, Started: epoch.Add(-48 * time.Hour)}},
		Injected: []string{"shop"},
	}
	r := edges.Report{Pod: "shop/api-1", Workload: edges.Peer{Kind: edges.KindWorkload, Namespace: "shop", Name: "api"}}
	for _, name := range callers {
		r.Edges = append(r.Edges, edges.Edge{
			Key: edges.Key{Direction: edges.Inbound, Security: security, Port: 8080}, Peer: edges.Peer{Kind: edges.KindWorkload, Namespace: "old", Name: name},
			Counts: edges.Counts{Connections: 3}, First: epoch.Add(-2 * time.Hour), Last: epoch.Add(-time.Hour),
		})
	}
	v.Edges = []edges.Report{r}
	return v
}

func TestStrictWarnings(t *testing.T) {
	many := []string{"a", "b", "c", "d", "e", "f", "g"}
	young := adviceView(edges.MutualTLS)
	young.Proxies[0].Started = epoch.Add(-time.Minute)
	for name, tc := range map[string]struct {
		view     *View
		ns       string
		selector map[string]string
		want     []string
	}{
		"nobody":          {adviceView(edges.MutualTLS, "web"), "shop", nil, nil},
		"somebody":        {adviceView(edges.Plaintext, "cron"), "shop", nil, []string{"STRICT refuses old/cron at shop/api port 8080, seen 1h0m0s ago (plaintext): it is gone", "`podseal strict shop` says more"}},
		"everywhere":      {adviceView(edges.Plaintext, "cron"), "", nil, []string{"STRICT refuses old/cron", "`podseal strict NAMESPACE`"}},
		"many":            {adviceView(edges.Plaintext, many...), "shop", nil, []string{"old/a", "old/b", "old/c", "old/d", "old/e", "refuses 2 more callers"}},
		"of others":       {adviceView(edges.Plaintext, "cron"), "bank", nil, nil},
		"not selected":    {adviceView(edges.Plaintext, "cron"), "shop", map[string]string{"app": "web"}, nil},
		"selected":        {adviceView(edges.Plaintext, "cron"), "shop", map[string]string{"app": "api"}, []string{"old/cron", "says more"}},
		"not long enough": {young, "shop", nil, []string{"nobody was seen who would be refused, but not all was observed for 24h0m0s"}},
	} {
		a := &adviser{view: func(_ context.Context, ns string, parts []string) (*View, error) {
			if ns != "" || len(parts) != 4 {
				t.Errorf("asked for %q, %q", ns, parts)
			}
			return tc.view, nil
		}}
		got, err := a.warn(t.Context(), tc.ns, tc.selector)
		if err != nil || len(got) != len(tc.want) {
			t.Errorf("%s: %q, %v", name, got, err)
			continue
		}
		for i := range got {
			if !strings.Contains(got[i], tc.want[i]) || len(got[i]) > 256 {
				t.Errorf("%s: %q, want %q", name, got[i], tc.want[i])
			}
		}
	}
}

// Whoever writes STRICT is told whom it refuses, once, and is not kept from it.
func TestAdmissionOfStrict(t *testing.T) {
	asked := []string{}
	h := &webhooks{rootNamespace: testNamespace, meshConfig: func() string { return "" }, counts: newCounts(), authority: readyAuthority(t), log: slog.New(slog.DiscardHandler)}
	h.advise = func(_ context.Context, ns string, selector map[string]string) ([]string, error) {
		asked = append(asked, fmt.Sprint(ns, selector))
		if ns == "broken" {
			return nil, errors.New("no")
		}
		return []string{"STRICT refuses x"}, nil
	}
	object := func(ns string, spec map[string]any) []byte {
		b, err := json.Marshal(specified(discovery.KindPeerAuthentication, ns, "p", spec))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	strictSpec := map[string]any{"mtls": map[string]any{"mode": "STRICT"}}
	selected := map[string]any{"selector": map[string]any{"matchLabels": map[string]any{"app": "api"}}, "portLevelMtls": map[string]any{"80": map[string]any{"mode": "STRICT"}}}
	for name, tc := range map[string]struct {
		ns          string
		spec, old   map[string]any
		asked, warn string
	}{
		"a namespace":     {"shop", strictSpec, nil, "shopmap[]", "STRICT refuses x"},
		"the mesh":        {testNamespace, strictSpec, nil, "map[]", "STRICT refuses x"},
		"a port":          {"shop", selected, nil, "shopmap[app:api]", "STRICT refuses x"},
		"PERMISSIVE":      {"shop", map[string]any{"mtls": map[string]any{"mode": "PERMISSIVE"}}, nil, "", ""},
		"nothing new":     {"shop", strictSpec, strictSpec, "", ""},
		"from PERMISSIVE": {"shop", strictSpec, map[string]any{}, "shopmap[]", "STRICT refuses x"},
		"nobody knows":    {"broken", strictSpec, nil, "brokenmap[]", ""},
	} {
		asked = nil
		req := admission.Request{AdmissionRequest: admissionv1.AdmissionRequest{
			UID: "1", Kind: metav1.GroupVersionKind{Group: "security.istio.io", Version: "v1", Kind: discovery.KindPeerAuthentication}, Namespace: tc.ns, Name: "p",
			Operation: admissionv1.Create, Object: runtime.RawExtension{Raw: object(tc.ns, tc.spec)},
		}}
		if tc.old != nil {
			req.Operation, req.OldObject.Raw = admissionv1.Update, object(tc.ns, tc.old)
		}
		res := h.validate(t.Context(), req)
		if !res.Allowed || strings.Join(res.Warnings, "|") != tc.warn || strings.Join(asked, "|") != tc.asked {
			t.Errorf("%s: %v %q, asked %q", name, res.Allowed, res.Warnings, asked)
		}
	}
	if discovery.SaysStrict(&unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{"mtls": "STRICT"}}}) {
		t.Error("an object that is wrong says STRICT")
	}
}

// What is kept of a pod says where kubelet's probes go, if they were not rewritten.
func TestProbed(t *testing.T) {
	get := func(port intstr.IntOrString) *corev1.Probe {
		return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/x", Port: port}}}
	}
	pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{
		{Name: "a", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}}, LivenessProbe: get(intstr.FromString("web")), ReadinessProbe: get(intstr.FromInt32(15020))},
		{Name: "b", ReadinessProbe: get(intstr.FromInt32(9000)), StartupProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(5432)}}}},
	}}}
	trimmed, err := trimPod(pod)
	if err != nil {
		t.Fatal(err)
	}
	less, ok := trimmed.(*corev1.Pod)
	if !ok || less.Spec.Containers[0].LivenessProbe.HTTPGet.Path != "" || less.Spec.Containers[0].ReadinessProbe != nil {
		t.Errorf("%+v", trimmed)
	}
	if diff := cmp.Diff([]uint16{8080, 9000}, probed(less)); diff != "" {
		t.Error(diff)
	}
}
