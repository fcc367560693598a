package install

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/version"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"podseal.io/podseal/api/deckhouse/v1alpha1"
	"podseal.io/podseal/internal/settings"
	"podseal.io/podseal/internal/upgrade"
)

var checkTime = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func rootPEM(t *testing.T, notAfter time.Time) string {
	t.Helper()
	return rootMade(t, checkTime.Add(-time.Hour), notAfter)
}

// rootMade is a root as the control plane makes it.
func rootMade(t *testing.T, made, notAfter time.Time) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{"cluster.local"}}, NotBefore: made.Add(-rootBackdated), NotAfter: notAfter, IsCA: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// healthy is all that a well cluster has.
type healthy struct {
	mc       *v1alpha1.ModuleConfig
	istiod   *appsv1.Deployment
	injector *admissionv1.MutatingWebhookConfiguration
	root     *corev1.ConfigMap // of d8-istio
	shopRoot *corev1.ConfigMap
	ownRoot  *corev1.Secret // nil is none
	pod      *corev1.Pod
	late     *corev1.Pod // nil, or a pod without a proxy
	more     []client.Object
	inject   bool // the injector works
	server   string
}

// revoke puts a revocation list beside a CA that is in force, which the control plane has
// taken or not.
func (h *healthy) revoke(t *testing.T, until time.Time, taken bool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	by := &x509.Certificate{Subject: pkix.Name{Organization: []string{"cluster.local"}}, KeyUsage: x509.KeyUsageCRLSign, SubjectKeyId: []byte{1}}
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: until.Add(-240 * time.Hour), NextUpdate: until}, by, key)
	if err != nil {
		t.Fatal(err)
	}
	s := caSecret(settings.PluggedCASecret, "root-cert.pem", h.root.Data["root-cert.pem"])
	s.Data[revocationFile] = pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
	h.ownRoot, h.more = nil, append(h.more, s)
	if taken {
		hash := sha256.Sum256(s.Data[revocationFile])
		h.root.Annotations = map[string]string{settings.AnnotationRevocations: hex.EncodeToString(hash[:8])}
	}
}

func newHealthy(t *testing.T) *healthy {
	t.Helper()
	root := rootPEM(t, checkTime.Add(3650*24*time.Hour))
	h := &healthy{mc: moduleConfig(true, 3, ""), inject: true, server: "34"}
	h.mc.Status = v1alpha1.ModuleConfigStatus{Version: "3", Message: "Ready"}
	h.istiod = deployment("d8-istio", "istiod")
	h.istiod.Spec.Template.Spec.Containers = []corev1.Container{{Image: "podseal.io/podseal:v1", Args: []string{"--proxy-image=podseal.io/podseal-proxy:v1"}}}
	h.injector = injector(t)
	for i := range h.injector.Webhooks {
		h.injector.Webhooks[i].ClientConfig.CABundle = []byte(root)
	}
	cm := func(ns string) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: settings.RootConfigMap}, Data: map[string]string{"root-cert.pem": root}}
	}
	h.root, h.shopRoot = cm("d8-istio"), cm("shop")
	h.ownRoot = caSecret(settings.CASecret, "ca-cert.pem", root)
	h.pod = &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", Annotations: map[string]string{statusAnnotation: "{}"}},
		Spec:       corev1.PodSpec{InitContainers: []corev1.Container{{Name: "istio-proxy", Image: "podseal.io/podseal-proxy:v1"}}},
		Status:     corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
	return h
}

// give makes a root that of the whole mesh.
func (h *healthy) give(root string) {
	for _, cm := range []*corev1.ConfigMap{h.root, h.shopRoot} {
		cm.Data["root-cert.pem"] = root
	}
	for i := range h.injector.Webhooks {
		h.injector.Webhooks[i].ClientConfig.CABundle = []byte(root)
	}
	h.ownRoot = caSecret(settings.CASecret, "ca-cert.pem", root)
}

// plugin adds the DaemonSet of the CNI plugin.
func (h *healthy) plugin(t *testing.T, mode string, nodes, ready int32) {
	t.Helper()
	ds := &appsv1.DaemonSet{}
	convert(t, find(t, render(t, PartControlPlane, "cni.mode="+mode), "DaemonSet", CNIDaemonSet), ds)
	ds.Status = appsv1.DaemonSetStatus{DesiredNumberScheduled: nodes, UpdatedNumberScheduled: nodes, NumberReady: ready}
	h.more = append(h.more, ds)
}

func deployment(namespace, name string) *appsv1.Deployment {
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{partOfLabel: partOf}},
		Spec:       appsv1.DeploymentSpec{Replicas: new(int32(1)), Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{Image: "podseal.io/podseal:v1"}}}}},
		Status:     appsv1.DeploymentStatus{Replicas: 1, UpdatedReplicas: 1, AvailableReplicas: 1},
	}
}

func (h *healthy) checker(t *testing.T) *Checker {
	t.Helper()
	scheme, err := Scheme()
	if err != nil {
		t.Fatal(err)
	}
	if err := apiextensionsv1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	validator := &admissionv1.ValidatingWebhookConfiguration{}
	convert(t, find(t, render(t, PartControlPlane), "ValidatingWebhookConfiguration", ValidatorName), validator)
	for i := range validator.Webhooks {
		validator.Webhooks[i].ClientConfig.CABundle = h.injector.Webhooks[0].ClientConfig.CABundle
		validator.Webhooks[i].FailurePolicy = new(admissionv1.Fail)
	}
	if h.ownRoot != nil {
		h.more = append(h.more, h.ownRoot)
	}
	objects := []client.Object{h.istiod, h.injector, validator, h.root, h.shopRoot, h.pod, deployment("podseal-system", "podseal-manager")}
	if h.mc != nil {
		objects = append(objects, h.mc)
	}
	if h.late != nil {
		objects = append(objects, h.late)
	}
	objects = append(objects, h.more...)
	for _, name := range []string{"d8-istio", "shop", "kube-public"} {
		labels := map[string]string{}
		if name == "shop" {
			labels["istio-injection"] = "enabled"
		}
		objects = append(objects, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}})
	}
	for _, name := range []string{"moduleconfigs.deckhouse.io", "peerauthentications.security.istio.io", "authorizationpolicies.security.istio.io", "requestauthentications.security.istio.io", "destinationrules.networking.istio.io", "serviceentries.networking.istio.io"} {
		objects = append(objects, &apiextensionsv1.CustomResourceDefinition{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Status:     apiextensionsv1.CustomResourceDefinitionStatus{Conditions: []apiextensionsv1.CustomResourceDefinitionCondition{{Type: apiextensionsv1.Established, Status: apiextensionsv1.ConditionTrue}}},
		})
	}
	c := fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).WithInterceptorFuncs(interceptor.Funcs{
		Create: func(_ context.Context, _ client.WithWatch, o client.Object, _ ...client.CreateOption) error {
			switch o := o.(type) {
			case *corev1.Pod:
				if !h.inject {
					return errors.New(`Internal error occurred: failed calling webhook "object.sidecar-injector.istio.io"`)
				}
				o.Spec.InitContainers = []corev1.Container{{Name: "istio-proxy", Image: "x"}}
			case *authorizationv1.SelfSubjectAccessReview:
				o.Status.Allowed = o.Spec.ResourceAttributes.Resource != "clusterroles"
			}
			return nil
		},
	}).Build()
	return &Checker{Client: c, Now: checkTime, ServerVersion: func(context.Context) (*version.Info, error) {
		if h.server == "" {
			return nil, errors.New("connection refused")
		}
		return &version.Info{Major: "1", Minor: h.server, GitVersion: "v1." + h.server + ".0"}, nil
	}}
}

func TestChecks(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(*healthy)
		want  []string // "verdict: text", of all that isn't success
	}{
		"well": {func(*healthy) {}, nil},
		"no API server": {
			func(h *healthy) { h.server = "" },
			[]string{"error: connection refused"},
		},
		"old Kubernetes": {
			func(h *healthy) { h.server = "28+" },
			[]string{"error: it is v1.28+.0"},
		},
		"no ModuleConfig": {
			func(h *healthy) { h.mc = nil },
			[]string{"off: Podseal is installed, and the mesh is not enabled: there is no ModuleConfig istio"},
		},
		"disabled": {
			func(h *healthy) { h.mc.Spec.Enabled = new(false) },
			[]string{"off: Podseal is installed, and the mesh is not enabled: ModuleConfig istio says so"},
		},
		"wrong settings": {
			func(h *healthy) { h.mc.Status.Message = messageKept + "settings.x: unknown setting" },
			[]string{"error: Settings refused, the last good ones stay in force:\nsettings.x: unknown setting"},
		},
		"warnings": {
			func(h *healthy) { h.mc.Status.Message = "Ready\nWarning: settings.x: no effect" },
			[]string{"warning: Warning: settings.x: no effect"},
		},
		"control plane down": {
			func(h *healthy) { h.istiod.Status.AvailableReplicas = 0; h.inject = false },
			[]string{"error: 0 of 1 replicas available", "error: pods of the mesh cannot be created"},
		},
		"unsigned webhook": {
			func(h *healthy) { h.injector.Webhooks[1].ClientConfig.CABundle = nil },
			[]string{"error: rev.object.sidecar-injector.istio.io: caBundle is not the mesh root"},
		},
		"webhook that lets pods pass": {
			func(h *healthy) { h.injector.Webhooks[2].FailurePolicy = new(admissionv1.Ignore) },
			[]string{"error: namespace.sidecar-injector.istio.io lets pods start without a proxy"},
		},
		"root missing in a namespace": {
			func(h *healthy) { h.shopRoot.Data = nil },
			[]string{"error: ConfigMap istio-ca-root-cert is missing or not the mesh root in: shop"},
		},
		"pod not ready": {
			func(h *healthy) { h.pod.Status.Conditions = nil },
			[]string{"warning: 1 of 1 are not: shop/web"},
		},
		"CNI plugin, on every node": {
			func(h *healthy) { h.plugin(t, "install", 2, 2) }, nil,
		},
		"CNI plugin, missing on a node": {
			func(h *healthy) {
				h.plugin(t, "install", 2, 1)
				h.more = append(h.more, &corev1.Pod{
					ObjectMeta: metav1.ObjectMeta{Namespace: "d8-istio", Name: "istio-cni-node-x", Labels: map[string]string{"k8s-app": "istio-cni-node"}},
					Spec:       corev1.PodSpec{NodeName: "node-2"},
				})
			},
			[]string{"error: the CNI plugin is on 1 of 2 nodes, not on: node-2"},
		},
		"CNI plugin, wanted and not there": {
			func(h *healthy) {
				h.mc.Spec.Settings = &runtime.RawExtension{Raw: []byte(`{"dataPlane":{"trafficRedirectionSetupMode":"CNIPlugin"}}`)}
			},
			[]string{"error: DaemonSet d8-istio/istio-cni-node is not there"},
		},
		"a pod that the CNI plugin did not capture": { // contract 5.52
			func(h *healthy) {
				h.plugin(t, "install", 1, 1)
				h.pod.Status.InitContainerStatuses = []corev1.ContainerStatus{{
					Name: "istio-proxy", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}},
					LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 126}},
				}}
			},
			[]string{"error: 1 pod is held, since their traffic is not captured: shop/web"},
		},
		"a pod that relies on a CNI plugin that has gone": {
			func(h *healthy) {
				h.pod.Spec.InitContainers[0].Args = []string{"proxy", "sidecar", "--require-capture"}
			},
			[]string{"warning: 1 pod relies on the CNI plugin, which is not there any more: shop/web"},
		},
		"old proxy": {
			func(h *healthy) { h.pod.Spec.InitContainers[0].Image = "podseal.io/podseal-proxy:v0" },
			[]string{"warning: 1 of 1 run another proxy than podseal.io/podseal-proxy:v1: shop/web"},
		},
		"pod older than its namespace's label": { // contract 5.7
			func(h *healthy) {
				h.late = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "old"}}
			},
			[]string{"warning: 1 pod has no proxy, in namespaces of the mesh: shop/old"},
		},
		"a CA that the control plane refused": { // contract 4.35
			func(h *healthy) {
				other := rootPEM(t, checkTime.Add(time.Hour))
				h.more = append(h.more, caSecret(settings.PluggedCASecret, "root-cert.pem", other),
					&corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "d8-istio", Name: "a"}, Reason: "CertificateAuthorityRefused", Message: "Secret cacerts: the new root bundle is foreign"},
					&corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "d8-istio", Name: "b"}, Reason: "BadCertificateAuthority", Message: "ModuleConfig settings.ca: of before", EventTime: metav1.NowMicro()})
			},
			[]string{"error: Secret cacerts is not in force, and will be when istiod starts anew: the new root bundle is foreign"},
		},
		"a CA in the settings that is not in force": {
			func(h *healthy) {
				text, err := json.Marshal(settings.Settings{CA: settings.CA{Cert: rootPEM(t, checkTime.Add(time.Hour))}})
				if err != nil {
					t.Fatal(err)
				}
				h.more = append(h.more, caSecret(settings.SettingsSecret, settingsKey, string(text)))
			},
			[]string{"error: ModuleConfig settings.ca is not in force, and will be when istiod starts anew: the roots of the mesh are others"},
		},
		"the root's Secret is gone": {
			func(h *healthy) { h.ownRoot = nil },
			[]string{"error: no Secret has the root's key any more"},
		},
		"the root was exchanged a moment ago": {
			func(h *healthy) { h.give(rootMade(t, checkTime.Add(-40*time.Second), checkTime.Add(rootSoon*100))) },
			[]string{"warning: the root was made 40s ago, and 1 pod is older than it"},
		},
		"the root was made before the pods": {
			func(h *healthy) {
				h.give(rootMade(t, checkTime.Add(-40*time.Second), checkTime.Add(rootSoon*100)))
				h.pod.CreationTimestamp = metav1.NewTime(checkTime.Add(-20 * time.Second))
			},
			nil,
		},
		"a CA that was given and is in force": {
			func(h *healthy) {
				h.ownRoot = nil
				h.more = append(h.more, caSecret(settings.PluggedCASecret, "root-cert.pem", h.root.Data["root-cert.pem"]))
			},
			nil,
		},
		"a list of revoked certificates that is in force": {
			func(h *healthy) { h.revoke(t, checkTime.Add(72*time.Hour), true) },
			nil,
		},
		"a list of revoked certificates that will end": {
			func(h *healthy) { h.revoke(t, checkTime.Add(24*time.Hour), true) },
			[]string{"warning: the revocation list of \"O=cluster.local\" in Secret cacerts ends at "},
		},
		"a list of revoked certificates that has ended": {
			func(h *healthy) { h.revoke(t, checkTime.Add(-time.Hour), true) },
			[]string{"error: the revocation list of \"O=cluster.local\" in Secret cacerts ended at "},
		},
		"a list of revoked certificates that is not in force": {
			func(h *healthy) { h.revoke(t, checkTime.Add(72*time.Hour), false) },
			[]string{"error: ca-crl.pem in Secret cacerts is not in force: the last good ones stay"},
		},
		"and why": {
			func(h *healthy) {
				h.revoke(t, checkTime.Add(72*time.Hour), false)
				h.more = append(h.more, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: settings.Namespace, Name: "crl"}, Reason: "BadRevocationList", Message: "Secret cacerts: ca-crl.pem: not PEM"})
			},
			[]string{"error: ca-crl.pem in Secret cacerts is not in force: not PEM"},
		},
		"a PeerAuthentication that is passed over": {
			func(h *healthy) {
				h.more = append(h.more, peerAuthentication("a", "True"), peerAuthentication("b", "False"))
			},
			[]string{"warning: 1 of 2 are not: PeerAuthentication shop/b"},
		},
		"revisions that nobody is": { // contract 5.3
			func(h *healthy) {
				h.mc.Spec.Version, h.mc.Spec.Settings = 3, &runtime.RawExtension{Raw: []byte(`{"globalVersion": "1.27"}`)}
				h.more = append(h.more,
					&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "old", Labels: map[string]string{revLabel: "v1x21"}, DeletionTimestamp: new(metav1.Now()), Finalizers: []string{"x"}}},
					&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "new", Labels: map[string]string{revLabel: "v1x27"}, DeletionTimestamp: new(metav1.Now()), Finalizers: []string{"x"}}},
					&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "new", Name: "late"}},
					&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "plain", Name: "odd", Labels: map[string]string{revLabel: "canary"}}})
			},
			[]string{"warning: 1 pod has no proxy, in namespaces of the mesh: new/late", "warning: no control plane is called canary, v1x21, so there is no proxy: namespace old, pod plain/odd"},
		},
		"workloads that ask to be rolled, and nobody may": { // contract 5.7
			func(h *healthy) {
				auto := map[string]string{upgrade.Label: "true"}
				h.more = append(h.more,
					&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "old", Labels: auto, DeletionTimestamp: new(metav1.Now()), Finalizers: []string{"x"}}},
					&appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db", Labels: auto}},
					&appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}})
			},
			[]string{"warning: label istio.deckhouse.io/auto-upgrade has no effect, as ModuleConfig istio doesn't allow it: namespace old, statefulset shop/db"},
		},
		"workloads that ask to be rolled, and can't be": {
			func(h *healthy) {
				h.mc.Annotations = map[string]string{settings.AnnotationAutoUpgrade: "true"}
				set := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db", UID: "db", Labels: map[string]string{upgrade.Label: "true"}}}
				set.Spec.UpdateStrategy.Type = appsv1.OnDeleteStatefulSetStrategyType
				h.pod.Spec.InitContainers[0].Image, h.pod.OwnerReferences = "podseal.io/podseal-proxy:v0", []metav1.OwnerReference{{Kind: "StatefulSet", Name: "db", UID: "db", Controller: new(true)}}
				h.more = append(h.more, set)
			},
			[]string{"warning: 1 of 1 run another proxy", "warning: 1 workload is not rolled to the proxy of now: statefulset shop/db (its updateStrategy is OnDelete)"},
		},
		"pod that opted out": {
			func(h *healthy) {
				h.late = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "out", Labels: map[string]string{injectLabel: "false"}}}
			},
			nil,
		},
		"pod on the network of its node": { // contract 5.6
			func(h *healthy) {
				h.late = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "agent"}, Spec: corev1.PodSpec{HostNetwork: true}}
			},
			[]string{"warning: 1 pod uses the network of the node (hostNetwork), which a proxy must not capture: shop/agent"},
		},
		"pod on the network of its node, as meant": {
			func(h *healthy) {
				h.late = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "agent", Labels: map[string]string{injectLabel: "false"}}, Spec: corev1.PodSpec{HostNetwork: true}}
			},
			nil,
		},
		"what could not be applied": {
			func(h *healthy) { h.mc.Status.Message = messageFailed + "apply Service d8-istio/istiod: forbidden" },
			[]string{"error: Cannot apply: apply Service"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHealthy(t)
			tc.spoil(h)
			report := h.checker(t).Installed(t.Context())
			compareReport(t, report, tc.want)
		})
	}
}

func caSecret(name, key, value string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "d8-istio", Name: name}, Data: map[string][]byte{key: []byte(value)}}
}

func peerAuthentication(name, accepted string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
		"metadata": map[string]any{"namespace": "shop", "name": name},
		"status":   map[string]any{"conditions": []any{map[string]any{"type": "Accepted", "status": accepted}}},
	}}
}

func compareReport(t *testing.T, report Report, want []string) {
	t.Helper()
	var got []string
	success := true
	for _, category := range report.Categories {
		for _, ch := range category.Checks {
			if ch.Result == Success {
				continue
			}
			success = success && ch.Result != Error && ch.Result != Off
			got = append(got, string(ch.Result)+": "+ch.Error)
			if ch.Hint == "" {
				t.Errorf("%q doesn't say what to do", ch.Description)
			}
		}
	}
	if len(got) != len(want) || !slices.EqualFunc(got, want, strings.HasPrefix) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if report.Success != success {
		t.Errorf("success is %v", report.Success)
	}
	if off := len(got) == 1 && strings.HasPrefix(got[0], "off: "); report.NotEnabled != off {
		t.Errorf("not enabled is %v", report.NotEnabled)
	}
}

func TestRootExpiry(t *testing.T) {
	for days, want := range map[int]string{-1: "error: the root", 10: "warning: the root", 100: ""} {
		h := newHealthy(t)
		root := rootPEM(t, checkTime.Add(time.Duration(days)*24*time.Hour))
		h.give(root)
		var wants []string
		if want != "" {
			wants = []string{want}
		}
		compareReport(t, h.checker(t).Installed(t.Context()), wants)
	}
}

func TestChecksBefore(t *testing.T) {
	h := newHealthy(t)
	h.injector.Labels = nil // another mesh's
	compareReport(t, h.checker(t).Before(t.Context()), []string{
		"error: you may not: get clusterroles, create clusterroles, patch clusterroles, delete clusterroles",
		"error: MutatingWebhookConfiguration istio-sidecar-injector is another mesh's",
	})
}

func TestWaitSaysWhatItWaitsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeoutCause(t.Context(), 70*time.Second, errors.New("the time is over"))
		defer cancel()
		var said []string
		err := Wait(ctx, func(context.Context) (string, error) { return "x: 0 of 1", nil }, func(text string, elapsed time.Duration) {
			said = append(said, text+" "+elapsed.String())
		})
		if err == nil || !strings.Contains(err.Error(), "x: 0 of 1") || !strings.Contains(err.Error(), "the time is over") {
			t.Errorf("error %v", err)
		}
		if want := []string{"x: 0 of 1 0s", " 30s", " 1m0s"}; !slices.Equal(said, want) {
			t.Errorf("said %q, want %q", said, want)
		}
	})
}

func TestWaitEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		err := Wait(t.Context(), func(context.Context) (string, error) {
			n++
			return strings.Repeat("x", 3-n), nil
		}, func(string, time.Duration) {})
		if err != nil || n != 3 {
			t.Errorf("looked %d times: %v", n, err)
		}
	})
}

func TestRemove(t *testing.T) {
	for _, keep := range []bool{false, true} {
		w := newWorld(t, moduleConfig(true, 3, ""),
			&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: settings.RootConfigMap, Labels: map[string]string{"istio.io/config": "true"}}},
			&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", Annotations: map[string]string{statusAnnotation: "{}"}}},
			&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"mine": "x"}}},
			&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "user", Labels: map[string]string{"pod-security.kubernetes.io/enforce": "baseline"}}})
		cluster := &Cluster{Client: w.c, Owner: OwnerCLI}
		if err := cluster.Apply(t.Context(), render(t, PartManager)); err != nil {
			t.Fatal(err)
		}
		w.reconcile()
		label := objectNamed("v1", "Namespace", "", "shop")
		label.SetLabels(map[string]string{"pod-security.kubernetes.io/enforce": "privileged"})
		if err := w.c.Apply(t.Context(), client.ApplyConfigurationFromUnstructured(label), client.FieldOwner(ownerControlPlane)); err != nil {
			t.Fatal(err)
		}
		w.changed = nil
		pods, err := cluster.Remove(t.Context(), Uninstall{KeepCA: keep, KeepCRDs: keep, Progress: func(string, time.Duration) {}})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(pods, []string{"shop/web"}) {
			t.Errorf("pods with a proxy: %v", pods)
		}
		if w.changed[0] != "delete Deployment podseal-manager" || !strings.Contains(w.changed[1], "WebhookConfiguration") || !strings.Contains(w.changed[2], "WebhookConfiguration") {
			t.Errorf("order: %v", w.changed)
		}
		if w.has(&corev1.ConfigMap{}, "shop", settings.RootConfigMap) {
			t.Error("the root is still in namespace shop")
		}
		if labels := get(w, &corev1.Namespace{}, "", "shop").Labels; labels["pod-security.kubernetes.io/enforce"] != "" || labels["mine"] != "x" {
			t.Errorf("labels of shop: %v", labels)
		}
		if labels := get(w, &corev1.Namespace{}, "", "user").Labels; labels["pod-security.kubernetes.io/enforce"] == "" {
			t.Error("removed a label that isn't ours")
		}
		for _, name := range []string{"moduleconfigs.deckhouse.io", "peerauthentications.security.istio.io", "authorizationpolicies.security.istio.io", "requestauthentications.security.istio.io", "destinationrules.networking.istio.io", "serviceentries.networking.istio.io"} {
			if w.has(&apiextensionsv1.CustomResourceDefinition{}, "", name) != keep {
				t.Errorf("keep %v: CRD %s", keep, name)
			}
		}
		if w.has(&corev1.Namespace{}, "", "d8-istio") != keep || w.has(&corev1.Namespace{}, "", "podseal-system") {
			t.Errorf("keep %v: namespaces", keep)
		}
		if keep && *get(w, &v1alpha1.ModuleConfig{}, "", "istio").Spec.Enabled {
			t.Error("the ModuleConfig stays enabled: the next install would start the mesh unasked")
		}
	}
}

func TestParseCorefile(t *testing.T) {
	for text, want := range map[string]string{
		".:53 {\n    errors\n    kubernetes cluster.local in-addr.arpa ip6.arpa {\n    }\n}": "cluster.local",
		".:53 {\n kubernetes Corp.Example. {\n}\n}":                                          "corp.example",
		".:53 {\n kubernetes in-addr.arpa k8s.test\n}":                                       "k8s.test",
		".:53 {\n kubernetes {\n}\n}":                                                        "",
		".:53 {\n kubernetes {$ZONE}\n}":                                                     "",
		"":                                                                                   "",
	} {
		if got := parseCorefile(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func FuzzParseCorefile(f *testing.F) {
	f.Add(".:53 {\n kubernetes cluster.local {\n}\n}")
	f.Fuzz(func(t *testing.T, text string) {
		if got := parseCorefile(text); strings.ContainsAny(got, " \t\n{") {
			t.Errorf("%q gives %q", text, got)
		}
	})
}

// TestCNIPlatforms: the agent looks where the distribution has its configurations, and
// if it looks elsewhere, the check says which distribution it is.
func TestCNIPlatforms(t *testing.T) {
	for platform, node := range map[string]*corev1.Node{
		"k3s":      {Status: corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{KubeletVersion: "v1.34.1+k3s1"}}},
		"k3d":      {ObjectMeta: metav1.ObjectMeta{Name: "k3d-demo-server-0"}, Status: corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{KubeletVersion: "v1.34.1+k3s1"}}},
		"gke":      {Status: corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{KubeletVersion: "v1.34.1-gke.1043000"}}},
		"microk8s": {ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"microk8s.io/cluster": "true"}}},
	} {
		if node.Name == "" {
			node.Name = "n1"
		}
		agent := find(t, render(t, PartControlPlane, "cni.mode=install", "cni.platform="+platform), "DaemonSet", CNIDaemonSet)
		if got := platformOf(agent); got != platform {
			t.Errorf("%s is taken for %q", platform, got)
		}
		h := newHealthy(t)
		h.mc.Spec.Version, h.mc.Spec.Settings = 3, &runtime.RawExtension{Raw: []byte(withPlugin)}
		h.plugin(t, "install", 1, 0)
		h.more = append(h.more, node)
		compareReport(t, h.checker(t).Installed(t.Context()), []string{"error: the CNI plugin is on 0 of 1 nodes; the nodes are of " + platform})
	}
	if got := platformOf(find(t, render(t, PartControlPlane, "cni.mode=install"), "DaemonSet", CNIDaemonSet)); got != "" {
		t.Errorf("the usual directories are taken for those of %s", got)
	}
	text := fmt.Sprint(find(t, render(t, PartControlPlane, "cni.mode=install", "cni.platform=k3s", "cni.cniConfDir=/etc/own"), "DaemonSet", CNIDaemonSet).Object)
	if !strings.Contains(text, "path:/etc/own") || !strings.Contains(text, "--node-conf-dir=/etc/own") || strings.Contains(text, "agent/etc/cni") {
		t.Errorf("a directory that is named does not win: %s", text)
	}
	if _, err := Render(Values{"cni": map[string]any{"platform": "openshift"}}, PartControlPlane); err == nil {
		t.Error("a platform that is not supported is accepted")
	}
}
