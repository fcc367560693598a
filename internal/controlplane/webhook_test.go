package controlplane

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"podseal.io/podseal/internal/inject"
	"podseal.io/podseal/internal/settings"
)

func newWebhooks(t testing.TB, a *authority, c client.Client) *webhooks {
	t.Helper()
	return &webhooks{
		namespaces: c, live: c, authority: a, roots: &rootWriter{client: c, authority: a}, counts: newCounts(), rootNamespace: testNamespace, meshConfig: func() string { return "" },
		params: inject.Params{ProxyImage: "podseal.io/podseal-proxy:test", CAAddress: "istiod.d8-istio.svc:15012", NativeSidecars: true},
		log:    slog.New(slog.DiscardHandler),
	}
}

// review is what the API server sends.
func review(kind, group, operation, ns, name, object string, dryRun bool) string {
	return fmt.Sprintf(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u-1","kind":{"group":%q,"version":"v1","kind":%q},`+
		`"namespace":%q,"name":%q,"operation":%q,"dryRun":%v,"object":%s}}`, group, kind, ns, name, operation, dryRun, object)
}

func ask(t testing.TB, h http.Handler, path, body string) *admissionv1.AdmissionResponse {
	t.Helper()
	req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, strings.NewReader(body))
	req.Header.Set("Content-Type", "application/json")
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	var out admissionv1.AdmissionReview
	if err := json.Unmarshal(rec.Body.Bytes(), &out); err != nil || out.Response == nil {
		t.Fatalf("answer %d %q: %v", rec.Code, rec.Body, err)
	}
	return out.Response
}

const plainPod = `{"metadata":{"generateName":"web-","labels":{"app":"web"}},"spec":{"containers":[{"name":"app","image":"nginx","futureField":"kept"}]}}`

func TestInject(t *testing.T) {
	a := readyAuthority(t)
	c := fakeClient(namespace("shop", map[string]string{"istio-injection": "enabled"}), namespace("off", nil))
	h := newWebhooks(t, a, c).handler()

	res := ask(t, h, "/inject", review("Pod", "", "CREATE", "shop", "", plainPod, false))
	if !res.Allowed || string(res.UID) != "u-1" {
		t.Fatalf("answer %+v", res)
	}
	patch, err := jsonpatch.DecodePatch(res.Patch)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := patch.Apply([]byte(plainPod))
	if err != nil {
		t.Fatalf("apply the patch: %v", err)
	}
	var pod corev1.Pod
	if err := json.Unmarshal(raw, &pod); err != nil {
		t.Fatal(err)
	}
	if pod.Labels["security.istio.io/tlsMode"] != "istio" || len(pod.Spec.InitContainers) != 2 {
		t.Errorf("injected pod %+v", pod)
	}
	if !bytes.Contains(raw, []byte("futureField")) {
		t.Error("a field that we don't know was lost")
	}
	// The namespace has its root before the pod needs it (contract 4.29, 4.30).
	if err := c.Get(t.Context(), types.NamespacedName{Namespace: "shop", Name: settings.RootConfigMap}, &corev1.ConfigMap{}); err != nil {
		t.Errorf("root ConfigMap: %v", err)
	}
	if res := ask(t, h, "/inject", review("Pod", "", "CREATE", "off", "x", plainPod, false)); !res.Allowed || len(res.Patch) > 0 {
		t.Errorf("a pod of a namespace without injection: %+v", res)
	}
}

func TestInjectDryRunWritesNothing(t *testing.T) {
	c := fakeClient(namespace("shop", map[string]string{"istio-injection": "enabled"}))
	h := newWebhooks(t, readyAuthority(t), c).handler()
	if res := ask(t, h, "/inject", review("Pod", "", "CREATE", "shop", "x", plainPod, true)); !res.Allowed || len(res.Patch) == 0 {
		t.Fatalf("answer %+v", res)
	}
	var all corev1.ConfigMapList
	if err := c.List(t.Context(), &all); err != nil || len(all.Items) > 0 {
		t.Errorf("%d ConfigMaps, %v", len(all.Items), err)
	}
}

func TestInjectRefuses(t *testing.T) {
	a := readyAuthority(t)
	c := fakeClient(namespace("shop", map[string]string{"istio-injection": "enabled"}))
	h := newWebhooks(t, a, c).handler()
	for name, tc := range map[string]struct{ ns, pod, says string }{
		"wrong annotation (5.9)": {"shop", `{"metadata":{"name":"x","annotations":{"traffic.sidecar.istio.io/excludeInboundPorts":"http"}},"spec":{"containers":[{"name":"app"}]}}`, "excludeInboundPorts"},
		"pod that is none":       {"shop", `{"metadata":[]}`, "decode the pod"},
		"unknown namespace":      {"nowhere", plainPod, "namespace nowhere"},
	} {
		res := ask(t, h, "/inject", review("Pod", "", "CREATE", tc.ns, "x", tc.pod, false))
		if res.Allowed || res.Result == nil || !strings.Contains(res.Result.Message, tc.says) || !strings.Contains(res.Result.Message, "podseal") {
			t.Errorf("%s: %+v", name, res)
		}
	}
	starting := newWebhooks(t, newTestAuthority(t, at(epoch)), c).handler()
	if res := ask(t, starting, "/inject", review("Pod", "", "CREATE", "shop", "x", plainPod, false)); res.Allowed || !strings.Contains(res.Result.Message, "starting") {
		t.Errorf("before there are settings: %+v", res)
	}
}

// TestNamespaceNewerThanCache: the first pod of a fresh namespace.
func TestNamespaceNewerThanCache(t *testing.T) {
	h := newWebhooks(t, readyAuthority(t), fakeClient())
	h.live = fakeClient(namespace("fresh", map[string]string{"istio-injection": "enabled"}))
	if res := ask(t, h.handler(), "/inject", review("Pod", "", "CREATE", "fresh", "x", plainPod, false)); !res.Allowed || len(res.Patch) == 0 {
		t.Errorf("answer %+v", res)
	}
}

// TestNamespaceOlderInCache: the API server asks because of a label that the
// cache hasn't yet. A pod must not start without a proxy for that, nor be refused
// for what the namespace no longer says.
func TestNamespaceOlderInCache(t *testing.T) {
	enabled := map[string]string{"istio-injection": "enabled"}
	guarded := map[string]string{"istio-injection": "enabled", "pod-security.kubernetes.io/enforce": "baseline"}
	for name, tc := range map[string]struct {
		cached, now map[string]string
		want        bool
	}{
		"labelled a moment ago":         {nil, enabled, true},
		"not labelled at all":           {nil, nil, false},
		"its Pod Security was lifted":   {guarded, enabled, true},
		"its Pod Security is in force":  {guarded, guarded, false},
		"the label was taken off again": {enabled, nil, true}, // the API server saw it
	} {
		h := newWebhooks(t, readyAuthority(t), fakeClient(namespace("shop", tc.cached)))
		h.live = fakeClient(namespace("shop", tc.now))
		if res := ask(t, h.handler(), "/inject", review("Pod", "", "CREATE", "shop", "x", plainPod, false)); (len(res.Patch) > 0) != tc.want {
			t.Errorf("%s: injected %t: %+v", name, len(res.Patch) > 0, res)
		}
	}
	h := newWebhooks(t, readyAuthority(t), fakeClient(namespace("shop", nil)))
	h.live = fakeClient() // it can't be read
	if res := ask(t, h.handler(), "/inject", review("Pod", "", "CREATE", "shop", "x", plainPod, false)); res.Allowed {
		t.Error("a pod starts without a proxy since its namespace could not be read")
	}
}

func TestWebhookGarbage(t *testing.T) {
	h := newWebhooks(t, readyAuthority(t), fakeClient()).handler()
	whole := review("Pod", "", "CREATE", "shop", "x", plainPod, false)
	for _, path := range []string{"/inject", "/validate"} {
		for _, body := range []string{"x", "{}", "null", `{"kind":"Pod"}`, strings.Repeat("x", 8<<20)} {
			if res := ask(t, h, path, body); res.Allowed {
				t.Errorf("%s %.20q: %+v", path, body, res)
			}
		}
		for i := range len(whole) { // cut at every byte
			if res := ask(t, h, path, whole[:i]); res.Allowed {
				t.Fatalf("%s: allowed what ends after %d bytes", path, i)
			}
		}
	}
	for _, req := range []*http.Request{
		httptest.NewRequestWithContext(context.Background(), http.MethodGet, "/inject", nil),
		httptest.NewRequestWithContext(context.Background(), http.MethodPost, "/other", nil),
	} {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, req)
		if rec.Code < 400 {
			t.Errorf("%s %s: %d", req.Method, req.URL, rec.Code)
		}
	}
}

// TestValidate is contract 1.30-1.36 as the API server meets it.
func TestValidate(t *testing.T) {
	h := newWebhooks(t, readyAuthority(t), fakeClient()).handler()
	const sec = "security.istio.io"
	for name, tc := range map[string]struct {
		kind, group, op, ns, object string
		allowed                     bool
		says, warns                 string
	}{
		"good":                    {"PeerAuthentication", sec, "CREATE", "shop", `{"metadata":{"name":"p"},"spec":{"mtls":{"mode":"STRICT"}}}`, true, "", ""},
		"1.30":                    {"PeerAuthentication", sec, "CREATE", "shop", `{"spec":{"portLevelMtls":{"80":{"mode":"STRICT"}}}}`, false, "spec.portLevelMtls", ""},
		"all faults at once":      {"PeerAuthentication", sec, "UPDATE", "shop", `{"spec":{"mtls":{"mode":"X"},"portLevelMtls":{"0":{}}}}`, false, "spec.portLevelMtls[0]", ""},
		"1.9 warns":               {"PeerAuthentication", sec, "CREATE", root, `{"spec":{"selector":{"matchLabels":{"a":"b"}}}}`, true, "", "no effect in the root namespace"},
		"1.33 warns":              {"PeerAuthentication", sec, "CREATE", "shop", `{"spec":{"selector":{}}}`, true, "", "has no labels"},
		"deleting is free":        {"PeerAuthentication", sec, "DELETE", "shop", `null`, true, "", ""},
		"unreadable":              {"PeerAuthentication", sec, "CREATE", "shop", `"x"`, false, "can't read", ""},
		"probe (1.36)":            {"PeerAuthentication", sec, "CREATE", root, `{"metadata":{"annotations":{"podseal.io/admission-probe":""}}}`, false, probeRefused, ""},
		"not enforced yet":        {"Sidecar", "networking.istio.io", "CREATE", "shop", `{"metadata":{"name":"a"}}`, true, "", "Sidecar shop/a: Podseal does not enforce"},
		"1.38":                    {"RequestAuthentication", sec, "CREATE", "shop", `{"spec":{"jwtRules":[{"issuer":"a","jwks":"{}"}]}}`, false, "spec.jwtRules[0].jwks", ""},
		"6.45":                    {"AuthorizationPolicy", sec, "CREATE", "shop", `{"spec":{"action":"DENY","rules":[{"to":[{"operation":{"ports":["x"]}}]}]}}`, false, "spec.rules[0].to[0].operation.ports[0]", ""},
		"6.34 warns":              {"AuthorizationPolicy", sec, "CREATE", "shop", `{"spec":{"action":"DENY","rules":[{"to":[{"operation":{"methods":["GET"]}}]}]}}`, true, "", "denies every connection"},
		"6.44 warns":              {"AuthorizationPolicy", sec, "CREATE", "shop", `{"spec":{"action":"CUSTOM","provider":{"name":"opa"},"rules":[{}]}}`, true, "", "not among extensionProviders"},
		"of the networking group": {"VirtualService", "networking.istio.io", "CREATE", "shop", `{"metadata":{"generateName":"d-"}}`, true, "", "VirtualService shop/d-*"},
		"3.38":                    {"DestinationRule", "networking.istio.io", "CREATE", "shop", `{"spec":{"host":"web","trafficPolicy":{"tls":{"mode":"MUTUAL"}}}}`, false, "spec.trafficPolicy.tls.clientCertificate", "caCertificates"},
		"3.30 warns":              {"DestinationRule", "networking.istio.io", "CREATE", "shop", `{"spec":{"host":"web","trafficPolicy":{"tls":{}}}}`, true, "", "DISABLE: traffic to web.shop.svc.cluster.local leaves in plaintext"},
		"somebody else's":         {"ConfigMap", "", "CREATE", "shop", `{}`, true, "", ""},
	} {
		res := ask(t, h, "/validate", review(tc.kind, tc.group, tc.op, tc.ns, "", tc.object, false))
		message := ""
		if res.Result != nil {
			message = res.Result.Message
		}
		if res.Allowed != tc.allowed || !strings.Contains(message, tc.says) {
			t.Errorf("%s: allowed %v, %q", name, res.Allowed, message)
		}
		if warnings := strings.Join(res.Warnings, "\n"); !strings.Contains(warnings, tc.warns) || (tc.warns == "") != (warnings == "") {
			t.Errorf("%s: warnings %q", name, warnings)
		}
	}
}

const root = testNamespace
