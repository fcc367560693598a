package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"podseal.io/podseal/internal/controlplane"
	"podseal.io/podseal/internal/edges"
	"podseal.io/podseal/internal/install"
	"podseal.io/podseal/internal/strict"
)

// strictView has shop/api, which somebody calls in plaintext or not, refused so often.
func strictView(plaintext bool, refused uint64) *controlplane.View {
	v := testView()
	v.Pods = v.Pods[:2]
	v.Pods[1].PortModes, v.Pods[1].Ports = nil, v.Pods[1].Ports[:1]
	v.Pods[1].Labels, v.Pods[1].Created = map[string]string{"app": "api"}, now.Add(-time.Hour)
	v.Pods[0].Created = now.Add(-time.Hour)
	v.Proxies[0].Started = now.Add(-30 * time.Minute)
	legacy, security := peer(edges.KindWorkload, "old", "legacy"), edges.MutualTLS
	if plaintext {
		security = edges.Plaintext
	}
	e := edge(legacy, security, 4)
	if refused > 0 {
		e.Counts.Refusals = map[string]uint64{"plaintext_refused": refused}
	}
	v.Edges = []edges.Report{{Pod: "shop/api-1", Workload: peer(edges.KindWorkload, "shop", "api"), Edges: []edges.Edge{e}}}
	return v
}

// strictLooker asks a replica whose view can be exchanged, nil for one that is gone,
// and an API server that has objects.
func strictLooker(t *testing.T, view *atomic.Pointer[controlplane.View], onCreate func(), objects ...client.Object) *looker {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if v := view.Load(); v != nil {
			_ = json.NewEncoder(w).Encode(v)
			return
		}
		http.Error(w, "going", http.StatusServiceUnavailable)
	}))
	t.Cleanup(server.Close)
	scheme, err := install.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	l := &looker{token: "t", tokenEnds: time.Now().Add(time.Hour), closed: make(chan struct{}), told: map[string]bool{}, notes: t.Output(), replicas: []replica{{"r", server.URL, server.Client()}}}
	l.client = fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).WithInterceptorFuncs(interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.CreateOption) error {
			o := client.CreateOptions{}
			o.ApplyOptions(opts)
			if len(o.DryRun) == 0 && onCreate != nil {
				defer onCreate()
			}
			return c.Create(ctx, obj, opts...)
		},
		Update: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.UpdateOption) error {
			o := client.UpdateOptions{}
			o.ApplyOptions(opts)
			if len(o.DryRun) == 0 && onCreate != nil {
				defer onCreate()
			}
			return c.Update(ctx, obj, opts...)
		},
	}).Build()
	return l
}

func strictOf(o strictOptions) *strictOptions {
	o.window, o.output, o.poll, o.grace = max(o.window, 10*time.Minute), "table", time.Millisecond, 20*time.Millisecond
	return &o
}

func TestStrictVerdict(t *testing.T) {
	view := &atomic.Pointer[controlplane.View]{}
	l := strictLooker(t, view, nil)
	for name, tc := range map[string]struct {
		view   *controlplane.View
		window time.Duration
		want   strict.Verdict
		print  string
	}{
		"mutual TLS": {strictView(false, 0), 0, strict.Go, "all that was seen in 10m was mutual TLS"},
		"plaintext":  {strictView(true, 0), 0, strict.NoGo, "old/legacy shop/api 8080 plaintext 4 60m 60s yes inject it: `kubectl label namespace old istio-injection=enabled`, then restart it"},
		"too short":  {strictView(false, 0), time.Hour, strict.Wait, "observed for 30m of 60m only"},
	} {
		view.Store(tc.view)
		o := strictOf(strictOptions{window: tc.window})
		_, r, err := o.judge(t.Context(), l, target{namespace: "shop"}, nil)
		if err != nil || r.Verdict != tc.want {
			t.Errorf("%s: %v %+v", name, err, r)
			continue
		}
		var out bytes.Buffer
		if err := o.print(streams{out: &out, err: t.Output()}, r); err != nil || !strings.Contains(strings.Join(strings.Fields(out.String()), " "), tc.print) {
			t.Errorf("%s: %v\n%s", name, err, out.String())
		}
	}
	_, _, err := strictOf(strictOptions{}).judge(t.Context(), l, target{namespace: "shpo"}, nil)
	var coded codedError
	if !asCoded(err, &coded) || coded.code != exitNoInput || !strings.Contains(err.Error(), "Did you mean shop?") {
		t.Error(err)
	}
}

func TestStrictTarget(t *testing.T) {
	for name, want := range map[string]target{
		"shop": {"shop", ""}, "ns/shop": {"shop", ""}, "shop/api": {"shop", "api"}, "deploy/shop/api": {"shop", "api"},
	} {
		if got := (&strictOptions{}).targetOf(name, &kube{}); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
	for _, name := range []string{"api", "deploy/api"} {
		if got := (&strictOptions{namespace: "shop"}).targetOf(name, &kube{}); got != (target{"shop", "api"}) {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// What --apply makes stays if nobody is refused who was fine before; else, and when
// nobody can tell, everything is what it was.
func TestStrictApply(t *testing.T) {
	permissive := func() *unstructured.Unstructured {
		u := peerAuthentication()
		u.SetNamespace("shop")
		u.SetName("mine")
		u.Object["spec"] = map[string]any{"mtls": map[string]any{"mode": "PERMISSIVE"}}
		return u
	}
	for name, tc := range map[string]struct {
		before, after *controlplane.View
		objects       []client.Object
		o             strictOptions
		err           string
		modes         string // of the objects afterwards
		told          string
	}{
		"a namespace":           {strictView(false, 0), strictView(false, 0), nil, strictOptions{}, "", "default STRICT", "is STRICT. Nobody was refused who was fine before."},
		"one that has one":      {strictView(false, 0), strictView(false, 0), []client.Object{permissive()}, strictOptions{}, "", "mine STRICT", "change PeerAuthentication shop/mine"},
		"only tried":            {strictView(false, 0), strictView(false, 0), nil, strictOptions{dryRun: true}, "", "", "mode: STRICT"},
		"somebody is refused":   {strictView(true, 0), strictView(true, 3), nil, strictOptions{}, "refused, and fine before: old/legacy (inject it", "", "PeerAuthentication shop/default is as it was"},
		"refused, of a changed": {strictView(true, 0), strictView(true, 3), []client.Object{permissive()}, strictOptions{}, "refused, and fine before", "mine PERMISSIVE", "PeerAuthentication shop/mine is as it was"},
		"a stranger is refused": {strictView(false, 0), strictView(true, 3), nil, strictOptions{}, "", "default STRICT", ""},
		"nobody can tell":       {strictView(false, 0), nil, nil, strictOptions{}, "nobody can tell who is refused", "", "it could not be watched"},
	} {
		view := &atomic.Pointer[controlplane.View]{}
		view.Store(tc.before)
		l := strictLooker(t, view, func() { view.Store(tc.after) }, tc.objects...)
		o := strictOf(tc.o)
		o.watchFor = 100 * time.Millisecond
		if tc.err != "" {
			o.watchFor = time.Minute
		}
		in, r, err := o.judge(t.Context(), l, target{namespace: "shop"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		var told bytes.Buffer
		err = (&enforcer{strictOptions: o, streams: streams{out: &told, err: &told}, looker: l, target: target{namespace: "shop"}}).run(t.Context(), in, r)
		if (err == nil) != (tc.err == "") || (err != nil && !strings.Contains(err.Error(), tc.err)) || !strings.Contains(told.String(), tc.told) {
			t.Errorf("%s: %v\n%s", name, err, told.String())
		}
		if got := modesOf(t, l.client); got != tc.modes {
			t.Errorf("%s: %q, want %q", name, got, tc.modes)
		}
	}
}

func modesOf(t *testing.T, c client.Client) string {
	t.Helper()
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(peerAuthentication().GroupVersionKind().GroupVersion().WithKind("PeerAuthenticationList"))
	if err := c.List(t.Context(), list); err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, p := range policiesOf(list) {
		out = append(out, p.Name+" "+p.Mode)
	}
	return strings.Join(out, ", ")
}

// Whoever changes the object while it is watched has the last word.
func TestStrictUndoesOnlyItsOwn(t *testing.T) {
	view := &atomic.Pointer[controlplane.View]{}
	view.Store(strictView(true, 0))
	l := strictLooker(t, view, nil)
	e := &enforcer{strictOptions: strictOf(strictOptions{}), streams: streams{err: t.Output()}, looker: l}
	obj := peerAuthentication()
	obj.SetNamespace("shop")
	obj.SetName("default")
	if err := l.client.Create(t.Context(), obj); err != nil {
		t.Fatal(err)
	}
	mine := obj.DeepCopy()
	mine.SetGeneration(mine.GetGeneration() + 1)
	e.done = []applied{{now: mine}}
	if err := e.undo("so"); err == nil || !strings.Contains(err.Error(), "somebody else has changed it") || modesOf(t, l.client) == "" {
		t.Error(err)
	}
}

func TestHooks(t *testing.T) {
	l := strictLooker(t, &atomic.Pointer[controlplane.View]{}, nil, &admissionv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "x"},
		Webhooks: []admissionv1.ValidatingWebhook{
			{ClientConfig: admissionv1.WebhookClientConfig{Service: &admissionv1.ServiceReference{Namespace: "shop", Name: "api", Port: new(int32(80))}}},
			{ClientConfig: admissionv1.WebhookClientConfig{Service: &admissionv1.ServiceReference{Namespace: "shop", Name: "web"}}},
			{ClientConfig: admissionv1.WebhookClientConfig{}},
		},
	})
	hooks := l.hooks(t.Context())
	if len(hooks) != 2 || !hooks["api.shop:80"] || !hooks["web.shop:443"] {
		t.Errorf("%v", hooks)
	}
	in := controlplane.StrictInput(strictView(true, 0), time.Hour, hooks)
	if p := in.Pods[1]; len(p.Hooks) != 1 || p.Hooks[0] != 8080 {
		t.Errorf("%+v", p)
	}
}

func TestStrictCommandLines(t *testing.T) {
	for _, tc := range []struct {
		args   []string
		stderr string
	}{
		{[]string{"strict"}, "wants NAMESPACE|WORKLOAD"},
		{[]string{"strict", "shop", "-o", "wide"}, "table, json, yaml"},
		{[]string{"strict", "shop", "--watch", "--apply"}, "exclude each other"},
		{[]string{"strict", "shop", "--dry-run"}, "are for --apply"},
		{[]string{"strict", "shop", "--window", "0s"}, "must be positive"},
	} {
		if stdout, stderr, code := podseal(t, tc.args...); code != exitUsage || stdout != "" || !strings.Contains(stderr, tc.stderr) {
			t.Errorf("%q: exit code %d: %s%s", tc.args, code, stdout, stderr)
		}
	}
}
