package controlplane

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"podseal.io/podseal/internal/discovery"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/report"
	"podseal.io/podseal/internal/settings"
	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/xds"
)

func policyObject(ns, name string, spec map[string]any) *unstructured.Unstructured {
	u := newPolicy(discovery.KindPeerAuthentication)
	u.SetNamespace(ns)
	u.SetName(name)
	u.SetUID(types.UID("uid-" + name))
	u.Object["spec"] = spec
	return u
}

func runningPod(ns, name, ip string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Labels: map[string]string{"security.istio.io/tlsMode": "istio"}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip},
	}
}

// noKeys has fetched nothing.
func noKeys([]discovery.KeySource) map[string]discovery.FetchedKeys { return nil }

func newTestPublisher(a *authority, c client.Reader) *publisher {
	return newPublisher(publisherConfig{Cache: c, Authority: a, Store: xds.NewStore(), Namespace: testNamespace, Keys: noKeys, MeshConfig: func() string { return "" }, Counts: newCounts(), Now: time.Now, Log: quietLog})
}

// mode is what the store tells the pod shop/a.
func mode(t testing.TB, p *publisher) string {
	t.Helper()
	for _, r := range p.cfg.Store.Resources(wire.TypeWorkload) {
		if r.Name == "shop/a" {
			w, err := wire.ParseWorkload(r.Body)
			if err != nil {
				t.Fatal(err)
			}
			return w.Modes.Default.String()
		}
	}
	return ""
}

// TestPublish: a policy takes effect; one that goes bad leaves its last good
// version in force until it goes away.
// Contract 3.28.
func TestPublish(t *testing.T) {
	pa := policyObject("shop", "p", map[string]any{"mtls": map[string]any{"mode": "STRICT"}})
	c := fakeClient(runningPod("shop", "a", "10.0.0.1"), pa)
	p := newTestPublisher(readyAuthority(t), c)
	publish := func() {
		t.Helper()
		if _, err := p.publish(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	publish()
	if m := mode(t, p); m != "STRICT" || !p.published() {
		t.Errorf("mode %s, published %v", m, p.published())
	}
	pa.Object["spec"] = map[string]any{"mtls": map[string]any{"mode": "ALWAYS"}}
	if err := c.Update(t.Context(), pa); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the memory outlasts the next build
		publish()
		if m := mode(t, p); m != "STRICT" {
			t.Errorf("a bad policy: mode %s", m)
		}
	}
	key := discovery.Key{Kind: discovery.KindPeerAuthentication, Namespace: "shop", Name: "p"}
	if v := (<-p.verdicts)[key]; v.Reason != discovery.ReasonInvalid { // the newest, although nobody took the others
		t.Errorf("verdict %+v", v)
	}
	if err := c.Delete(t.Context(), pa); err != nil {
		t.Fatal(err)
	}
	publish()
	if m := mode(t, p); m != "PERMISSIVE" {
		t.Errorf("a deleted policy: mode %s", m)
	}
	again := policyObject("shop", "p", map[string]any{"mtls": "x"}) // another object of that name has no past
	again.SetUID("uid-other")
	if err := c.Create(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	publish()
	if m := mode(t, p); m != "PERMISSIVE" {
		t.Errorf("a new bad policy: mode %s", m)
	}
}

// TestPublisherRuns: nothing before there is a root; then a change is published
// within 100 ms, and many at once are published together.
func TestPublisherRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newTestAuthority(t, time.Now)
		c := fakeClient(runningPod("shop", "a", "10.0.0.1"))
		p := newTestPublisher(a, c)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		advance := func(d time.Duration) { <-time.After(d); synctest.Wait() }
		advance(time.Second)
		if p.published() {
			t.Error("published without a root")
		}
		a.see(settingsSecret(t, settings.Default("")), false)
		a.see(secret(settings.CASecret, newSelfSigned(t, time.Now()).Files().Data()), false)
		advance(patience + quiet)
		if m := mode(t, p); m != "PERMISSIVE" {
			t.Errorf("mode %q", m)
		}
		if err := c.Create(t.Context(), policyObject("shop", "p", map[string]any{"mtls": map[string]any{"mode": "STRICT"}})); err != nil {
			t.Fatal(err)
		}
		generation := p.cfg.Store.Generation(wire.TypeWorkload)
		for range 50 { // changes without end don't hold it up
			p.kick()
			<-time.After(3 * time.Millisecond)
		}
		if m := mode(t, p); m != "STRICT" {
			t.Errorf("after %s of changes: mode %s", 150*time.Millisecond, m)
		}
		if n := p.cfg.Store.Generation(wire.TypeWorkload) - generation; n != 1 {
			t.Errorf("%d generations of one change", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestWhatMatters proves contract 1.21.
func TestWhatMatters(t *testing.T) {
	pod := runningPod("shop", "a", "10.0.0.1")
	status, label, excluded := pod.DeepCopy(), pod.DeepCopy(), pod.DeepCopy()
	status.ResourceVersion = "2"
	label.Labels["app"] = "x"
	excluded.Annotations = map[string]string{"traffic.sidecar.istio.io/excludeInboundPorts": "80"}
	if podMatters(pod, status) || !podMatters(pod, label) || !podMatters(pod, excluded) || !podMatters(pod, "tombstone") {
		t.Error("pods")
	}
	pa := policyObject("shop", "p", map[string]any{"mtls": map[string]any{}})
	ownStatus, spec, other := pa.DeepCopy(), pa.DeepCopy(), pa.DeepCopy()
	ownStatus.Object["status"] = map[string]any{"conditions": []any{}}
	ownStatus.SetResourceVersion("2")
	spec.Object["spec"] = map[string]any{}
	other.SetLabels(map[string]string{"istio.io/rev": "x"})
	if policyMatters(pa, ownStatus) || !policyMatters(pa, spec) || !policyMatters(pa, other) || !policyMatters(1, pa) {
		t.Error("policies")
	}
}

func TestTransforms(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	pod := runningPod("shop", "a", "10.0.0.1")
	exclude := map[string]string{"traffic.sidecar.istio.io/excludeInboundPorts": "80"} // contract 1.27
	pod.Annotations = maps.Clone(exclude)
	pod.Annotations["big"] = "x"
	pod.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "x"}}
	pod.Spec = corev1.PodSpec{
		ServiceAccountName: "web", NodeName: "n", Volumes: make([]corev1.Volume, 3),
		Containers:     []corev1.Container{{Name: "app", Image: "x", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80}}}, {Name: "other"}},
		InitContainers: []corev1.Container{{Name: "side", RestartPolicy: &always, Ports: []corev1.ContainerPort{{ContainerPort: 1}}}},
	}
	out, err := trimPod(pod)
	got, ok := out.(*corev1.Pod)
	if err != nil || !ok {
		t.Fatal(err)
	}
	if !maps.Equal(got.Annotations, exclude) || got.ManagedFields != nil || got.Spec.Volumes != nil || len(got.Spec.Containers) != 1 || got.Spec.Containers[0].Image != "" {
		t.Errorf("kept too much: %+v", got)
	}
	if got.Spec.ServiceAccountName != "web" || got.Spec.NodeName != "n" || got.Spec.InitContainers[0].RestartPolicy == nil || got.Status.PodIP != "10.0.0.1" {
		t.Errorf("kept too little: %+v", got)
	}
	ns := namespace("shop", nil)
	ns.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubectl"}, {Manager: string(fieldOwner)}}
	if out, _ := trimNamespace(ns); len(out.(*corev1.Namespace).ManagedFields) != 1 || len(ns.ManagedFields) != 2 {
		t.Error("namespaces keep our own managedFields only")
	}
	for _, f := range []func(any) (any, error){trimPod, trimNamespace} {
		if out, err := f("tombstone"); out != "tombstone" || err != nil {
			t.Errorf("tombstone: %v %v", out, err)
		}
	}
}

// TestNativeSidecars is contract 5.41.
func TestNativeSidecars(t *testing.T) {
	for version, want := range map[string]bool{"1.32": false, "1.33": true, "1.34+": true, "2.0": true, "1.": false, ".": false, "0.99": false} {
		major, minor, _ := strings.Cut(version, ".")
		if got := NativeSidecars(major, minor); got != want {
			t.Errorf("%s: %v", version, got)
		}
	}
}

func TestHealth(t *testing.T) {
	get := func(h *healthServer, path string) (int, string) {
		rec := httptest.NewRecorder()
		h.handler().ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
		return rec.Code, rec.Body.String()
	}
	a := readyAuthority(t)
	p := newTestPublisher(a, fakeClient())
	h := &healthServer{authority: a, publisher: p, streams: xds.NewServer(xds.ServerConfig{}), store: p.cfg.Store}
	if code, body := get(h, "/ready"); code != 503 || !strings.Contains(body, "nothing was published") {
		t.Errorf("before publishing: %d %s", code, body)
	}
	if _, err := p.publish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if code, body := get(h, "/ready"); code != 200 || body != "ready\n" {
		t.Errorf("ready: %d %s", code, body)
	}
	a.see(secret(settings.PluggedCASecret, map[string][]byte{"ca-cert.pem": []byte("x")}), false)
	if code, body := get(h, "/ready"); code != 200 || !strings.Contains(body, "last good input stays in force") {
		t.Errorf("bad CA: %d %s", code, body)
	}
	h.authority = newTestAuthority(t, at(epoch))
	if code, body := get(h, "/ready"); code != 503 || !strings.Contains(body, settings.SettingsSecret) {
		t.Errorf("no settings: %d %s", code, body)
	}
	var peers []any
	if code, body := get(h, "/debug/proxies"); code != 200 || json.Unmarshal([]byte(body), &peers) != nil {
		t.Errorf("proxies: %d %s", code, body)
	}
	if code, body := get(h, "/debug/resources"); code != 200 || !strings.Contains(body, "Mesh") {
		t.Errorf("resources: %d %s", code, body)
	}
}

// TestMetricsPage has the names of contract 7.15 and goes through serveHTTP.
func TestMetricsPage(t *testing.T) {
	c, a := newCounts(), readyAuthority(t)
	c.observe(a, xds.NewServer(xds.ServerConfig{}), report.NewServer(report.ServerConfig{}), time.Now)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- serveHTTP(ctx, l, c.handler(), nil, quietLog) }()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+l.Addr().String()+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"citadel_server_csr_count", "citadel_server_success_cert_issuance_count", "citadel_server_authentication_failure_count",
		"citadel_server_root_cert_expiry_timestamp", "podseal_root_seconds_left", "podseal_revocation_list_seconds_left +Inf", "pilot_xds ", "pilot_xds_pushes", "pilot_proxy_convergence_time_count", "sidecar_injection_requests_total",
		"sidecar_injection_success_total", "sidecar_injection_failure_total", "sidecar_injection_skip_total",
	} {
		if !strings.Contains(string(body), "\n"+name) {
			t.Errorf("no metric %s", name)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestConfig(t *testing.T) {
	err := (&Config{}).Validate()
	for _, say := range []string{"API server", "--proxy-image", "logger"} {
		if err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("faults %v, want %s among them", err, say)
		}
	}
	c := Config{REST: &rest.Config{}, ProxyImage: "x", Log: quietLog}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if c.complete(); c.Namespace != "d8-istio" || c.GRPCAddress != ":15012" || c.WebhookAddress != ":15017" || c.MetricsAddress != ":15014" || c.HealthAddress != ":8080" { // contract 4.6
		t.Errorf("defaults %+v", c)
	}
}

// TestPublishAuthorization: an AuthorizationPolicy reaches the store, its dry run
// is an annotation and not its spec, and its last good version outlasts a bad one.
func TestPublishAuthorization(t *testing.T) {
	ap := policyObject("shop", "p", map[string]any{"action": "DENY", "rules": []any{map[string]any{}}})
	ap.SetKind(discovery.KindAuthorizationPolicy)
	c := fakeClient(runningPod("shop", "a", "10.0.0.1"), ap)
	p := newTestPublisher(readyAuthority(t), c)
	told := func() *policy.AuthorizationPolicy {
		t.Helper()
		if _, err := p.publish(t.Context()); err != nil {
			t.Fatal(err)
		}
		all := p.cfg.Store.Resources(wire.TypeAuthorizationPolicy)
		if len(all) == 0 {
			return nil
		}
		got, err := wire.ParseAuthorizationPolicy(all[0].Body)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if got := told(); got == nil || got.Effect != policy.Deny || len(got.Rules) != 1 || got.DryRun {
		t.Errorf("%+v", got)
	}
	before := ap.DeepCopy()
	ap.SetAnnotations(map[string]string{"istio.io/dry-run": "true"})
	if !policyMatters(before, ap) {
		t.Error("an annotation doesn't matter")
	}
	if err := c.Update(t.Context(), ap); err != nil {
		t.Fatal(err)
	}
	if got := told(); got == nil || !got.DryRun {
		t.Errorf("%+v", got)
	}
	ap.Object["spec"] = map[string]any{"action": "DENY", "rules": []any{map[string]any{"from": []any{}}}}
	if err := c.Update(t.Context(), ap); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := told(); got == nil || !got.DryRun || got.Rules[0].From != nil {
			t.Errorf("%+v", got)
		}
	}
	if err := c.Delete(t.Context(), ap); err != nil {
		t.Fatal(err)
	}
	if got := told(); got != nil {
		t.Errorf("deleted, and still told: %+v", got)
	}
}
