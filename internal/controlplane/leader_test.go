package controlplane

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	admissionregv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"podseal.io/podseal/internal/ca"
	"podseal.io/podseal/internal/discovery"
	"podseal.io/podseal/internal/settings"
)

var quietLog = slog.New(slog.DiscardHandler)

// TestRootConfigMap is contract 4.29.
func TestRootConfigMap(t *testing.T) {
	a := readyAuthority(t)
	bundle, err := a.Bundle()
	if err != nil {
		t.Fatal(err)
	}
	terminating := namespace("going", nil)
	terminating.Finalizers = []string{"x/y"}
	c := fakeClient(namespace("shop", nil), namespace("kube-system", nil), namespace("kube-public", nil), namespace("kube-node-lease", nil), namespace("local-path-storage", nil), terminating)
	if err := c.Delete(t.Context(), terminating); err != nil {
		t.Fatal(err)
	}
	k := &namespaceKeeper{client: c, roots: &rootWriter{client: c, authority: a}, authority: a, log: quietLog}
	reconcileNS := func(name string) {
		t.Helper()
		if _, err := k.Reconcile(t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Name: name}}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	get := func(ns string) (*corev1.ConfigMap, error) {
		cm := &corev1.ConfigMap{}
		return cm, c.Get(t.Context(), types.NamespacedName{Namespace: ns, Name: settings.RootConfigMap}, cm)
	}
	for ns, want := range map[string]bool{"shop": true, "kube-system": true, "kube-public": false, "kube-node-lease": false, "local-path-storage": false, "going": false, "nowhere": false} {
		reconcileNS(ns)
		cm, err := get(ns)
		if (err == nil) != want {
			t.Errorf("%s: %v, want a ConfigMap: %v", ns, err, want)
		}
		if err == nil && (cm.Data[rootKey] != string(bundle) || cm.Labels[labelConfig] != "true") {
			t.Errorf("%s: %+v", ns, cm)
		}
	}
	// Edited copies are restored, deleted ones come back, foreign labels stay.
	cm, err := get("shop")
	if err != nil {
		t.Fatal(err)
	}
	cm.Data, cm.Labels = map[string]string{rootKey: "mine", "more": "x"}, map[string]string{"team": "a"}
	if err := c.Update(t.Context(), cm); err != nil {
		t.Fatal(err)
	}
	reconcileNS("shop")
	if cm, err = get("shop"); err != nil || cm.Data[rootKey] != string(bundle) || len(cm.Data) != 1 || cm.Labels["team"] != "a" || cm.Labels[labelConfig] != "true" {
		t.Errorf("after an edit: %+v %v", cm, err)
	}
	if err := c.Delete(t.Context(), cm); err != nil {
		t.Fatal(err)
	}
	reconcileNS("shop")
	if _, err := get("shop"); err != nil {
		t.Errorf("after deletion: %v", err)
	}
	// Without a root there is nothing to write, and no reason to complain.
	k.roots = &rootWriter{client: c, authority: newTestAuthority(t, at(epoch))}
	reconcileNS("shop")
}

func TestPodPolicy(t *testing.T) {
	user := client.FieldOwner("kubectl-label")
	for name, tc := range map[string]struct {
		before, after map[string]string // labels of the namespace, as its owner writes them
		deckhouse     bool
		want          string
	}{
		"none":                 {nil, nil, false, ""},
		"restricted":           {map[string]string{labelPodPolicy: "restricted"}, map[string]string{labelPodPolicy: "restricted"}, false, "restricted"},
		"changed":              {map[string]string{labelPodPolicy: "restricted"}, map[string]string{labelPodPolicy: "baseline"}, false, "baseline"},
		"removed with it":      {map[string]string{labelPodPolicy: "restricted"}, map[string]string{}, false, ""},
		"unknown value":        {map[string]string{labelPodPolicy: "strict"}, map[string]string{labelPodPolicy: "strict"}, false, ""},
		"Deckhouse does it":    {map[string]string{labelPodPolicy: "restricted"}, map[string]string{labelPodPolicy: "restricted"}, true, ""},
		"the owner's own stay": {map[string]string{labelPodPolicy: "restricted", labelEnforce: "baseline"}, map[string]string{labelPodPolicy: "restricted", labelEnforce: "baseline"}, false, "baseline"},
		"without ours to take": {map[string]string{labelEnforce: "baseline"}, map[string]string{labelEnforce: "baseline"}, false, "baseline"},
	} {
		t.Run(name, func(t *testing.T) {
			c := fakeClient()
			if tc.deckhouse {
				if err := c.Create(t.Context(), namespace(deckhouseNamespace, nil)); err != nil {
					t.Fatal(err)
				}
			}
			a := readyAuthority(t)
			k := &namespaceKeeper{client: c, roots: &rootWriter{client: c, authority: a}, authority: a, log: quietLog}
			for _, labels := range []map[string]string{tc.before, tc.after} {
				u := &unstructured.Unstructured{Object: map[string]any{}}
				u.SetAPIVersion("v1")
				u.SetKind("Namespace")
				u.SetName("shop")
				u.SetLabels(labels)
				if err := c.Apply(t.Context(), client.ApplyConfigurationFromUnstructured(u), user); err != nil {
					t.Fatal(err)
				}
				for range 2 { // it may be repeated
					if _, err := k.Reconcile(t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Name: "shop"}}); err != nil {
						t.Fatal(err)
					}
				}
			}
			ns := &corev1.Namespace{}
			if err := c.Get(t.Context(), types.NamespacedName{Name: "shop"}, ns); err != nil {
				t.Fatal(err)
			}
			if got := ns.Labels[labelEnforce]; got != tc.want {
				t.Errorf("level %q, want %q", got, tc.want)
			}
		})
	}
}

// TestRootIsMadeOnce: two replicas that both believe to lead make one root.
func TestRootIsMadeOnce(t *testing.T) {
	c := fakeClient()
	var made []*corev1.Secret
	for range 2 {
		a := newTestAuthority(t, time.Now, settingsSecret(t, settings.Default("corp.example")))
		m := &rootMaker{client: c, live: noSecrets{c}, authority: a, namespace: testNamespace, now: time.Now, random: rand.Reader, log: quietLog}
		if err := m.step(t.Context()); err != nil {
			t.Fatal(err)
		}
		s := &corev1.Secret{}
		if err := c.Get(t.Context(), types.NamespacedName{Namespace: testNamespace, Name: settings.CASecret}, s); err != nil {
			t.Fatal(err)
		}
		made = append(made, s)
		a.see(s, false)
		if err := m.step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if string(made[0].Data[ca.KeyFile]) != string(made[1].Data[ca.KeyFile]) || made[0].Type != typeRoot {
		t.Errorf("two roots, or of another type: %s", made[0].Type)
	}
	files, _ := ca.FromSecret(made[0].Data)
	issuer, err := ca.ParseIssuer(files, time.Now())
	if err != nil || issuer.Certificate().Subject.Organization[0] != "corp.example" { // contract 4.34
		t.Errorf("root %v: %v", issuer.Certificate().Subject, err)
	}
}

// TestRootIsRestored: the Secret of a root that is in force is written again when
// somebody deletes it, but not beside another CA, nor when the namespace goes.
func TestRootIsRestored(t *testing.T) {
	own := newSelfSigned(t, time.Now())
	stored := secret(settings.CASecret, own.Files().Data())
	for name, tc := range map[string]struct {
		others []*corev1.Secret
		ending bool
		want   bool
	}{
		"deleted":                 {nil, false, true},
		"deleted beside cacerts":  {[]*corev1.Secret{secret(settings.PluggedCASecret, newSelfSigned(t, time.Now()).Files().Data())}, false, false},
		"deleted with everything": {nil, true, false},
	} {
		c := interceptor.NewClient(fakeClient(), interceptor.Funcs{Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			if tc.ending {
				err := apierrors.NewForbidden(corev1.Resource("secrets"), o.GetName(), errors.New("it is being terminated"))
				err.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: corev1.NamespaceTerminatingCause}}
				return err
			}
			return c.Create(ctx, o, opts...)
		}})
		a := newTestAuthority(t, time.Now, settingsSecret(t, settings.Default("")), stored)
		m := &rootMaker{client: c, live: c, authority: a, namespace: testNamespace, now: time.Now, random: rand.Reader, log: quietLog}
		for _, s := range tc.others {
			a.see(s, false)
		}
		changed := a.Changed()
		a.see(stored, true)
		select {
		case <-changed:
		default:
			if tc.others == nil {
				t.Errorf("%s: nobody is told", name)
			}
		}
		if err := m.step(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		s := &corev1.Secret{}
		err := c.Get(t.Context(), client.ObjectKeyFromObject(stored), s)
		if (err == nil) != tc.want || (tc.want && (string(s.Data[ca.KeyFile]) != string(own.Files().Key) || s.Type != typeRoot)) {
			t.Errorf("%s: restored %t, want %t: %v", name, err == nil, tc.want, err)
		}
	}
}

// noSecrets is a reader that hasn't heard of any Secret yet: the race of two.
type noSecrets struct{ client.Reader }

func (noSecrets) Get(_ context.Context, key client.ObjectKey, _ client.Object, _ ...client.GetOption) error {
	return apierrors.NewNotFound(corev1.Resource("secrets"), key.Name)
}

// TestNoRootBesideCacerts: nothing is made where something else is plugged in.
func TestNoRootBesideCacerts(t *testing.T) {
	c := fakeClient(secret(settings.PluggedCASecret, newSelfSigned(t, time.Now()).Files().Data()))
	a := newTestAuthority(t, time.Now, settingsSecret(t, settings.Default("")))
	m := &rootMaker{client: c, live: c, authority: a, namespace: testNamespace, now: time.Now, random: rand.Reader, log: quietLog}
	if err := m.step(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Get(t.Context(), types.NamespacedName{Namespace: testNamespace, Name: settings.CASecret}, &corev1.Secret{}); !apierrors.IsNotFound(err) {
		t.Errorf("own root: %v", err)
	}
}

// TestRootIsRenewed is contract 4.34: with a fifth of its life left, same key.
func TestRootIsRenewed(t *testing.T) {
	old := newSelfSigned(t, epoch)
	now := epoch.Add(9 * 365 * 24 * time.Hour)
	stored := secret(settings.CASecret, old.Files().Data())
	c := fakeClient(stored)
	a := newTestAuthority(t, at(now), settingsSecret(t, settings.Default("")), stored)
	m := &rootMaker{client: c, live: c, authority: a, namespace: testNamespace, now: at(now), random: rand.Reader, log: quietLog}
	for range 2 { // the second time it is renewed already
		if err := m.step(t.Context()); err != nil {
			t.Fatal(err)
		}
		s := &corev1.Secret{}
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(stored), s); err != nil {
			t.Fatal(err)
		}
		a.see(s, false)
	}
	issuer, err := a.Issuer()
	if err != nil || a.Problem() != nil || !issuer.Certificate().NotAfter.After(old.Certificate().NotAfter) || string(issuer.Files().Key) != string(old.Files().Key) {
		t.Errorf("not renewed with the same key: %v %v", err, a.Problem())
	}
}

func hookConfigs() (*admissionregv1.MutatingWebhookConfiguration, *admissionregv1.ValidatingWebhookConfiguration) {
	cc := admissionregv1.WebhookClientConfig{Service: &admissionregv1.ServiceReference{Namespace: testNamespace, Name: "istiod"}}
	none := new(admissionregv1.SideEffectClassNone)
	injector := &admissionregv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: injectorConfig}}
	injector.Webhooks = []admissionregv1.MutatingWebhook{
		{Name: "a.example.com", ClientConfig: cc, FailurePolicy: new(admissionregv1.Fail), SideEffects: none}, {Name: "b.example.com", ClientConfig: cc, SideEffects: none},
	}
	validator := &admissionregv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: validatorConfig}}
	validator.Webhooks = []admissionregv1.ValidatingWebhook{{Name: "v.example.com", ClientConfig: cc, FailurePolicy: new(admissionregv1.Ignore), SideEffects: none}}
	return injector, validator
}

// TestWebhookConfigurations is contract 1.36: caBundle everywhere, and the
// validator strict only after it has refused a probe.
func TestWebhookConfigurations(t *testing.T) {
	a := readyAuthority(t)
	bundle, err := a.Bundle()
	if err != nil {
		t.Fatal(err)
	}
	mutating, validating := hookConfigs()
	reachable := false
	c := fake.NewClientBuilder().WithScheme(newScheme()).WithObjects(mutating, validating).WithInterceptorFuncs(interceptor.Funcs{
		Create: func(_ context.Context, _ client.WithWatch, obj client.Object, opts ...client.CreateOption) error {
			if _, probe := obj.GetAnnotations()[annotationProbe]; !probe {
				t.Errorf("created %T %s", obj, obj.GetName())
			}
			var o client.CreateOptions
			o.ApplyOptions(opts)
			if len(o.DryRun) == 0 {
				t.Error("the probe would be stored")
			}
			if !reachable {
				return nil
			}
			return apierrors.NewForbidden(corev1.Resource("x"), obj.GetName(), errText("admission webhook denied the request: "+probeRefused))
		},
	}).Build()
	k := &hookKeeper{client: c, authority: a, namespace: testNamespace, kicked: make(chan struct{}, 1), log: quietLog}
	look := func() (right bool, policy admissionregv1.FailurePolicyType) {
		var m admissionregv1.MutatingWebhookConfiguration
		var v admissionregv1.ValidatingWebhookConfiguration
		if err := c.Get(t.Context(), types.NamespacedName{Name: injectorConfig}, &m); err != nil {
			t.Fatal(err)
		}
		if err := c.Get(t.Context(), types.NamespacedName{Name: validatorConfig}, &v); err != nil {
			t.Fatal(err)
		}
		right = string(v.Webhooks[0].ClientConfig.CABundle) == string(bundle) && *m.Webhooks[0].FailurePolicy == admissionregv1.Fail
		for i := range m.Webhooks {
			right = right && string(m.Webhooks[i].ClientConfig.CABundle) == string(bundle) && m.Webhooks[i].ClientConfig.Service.Name == "istiod"
		}
		return right, *v.Webhooks[0].FailurePolicy
	}
	if err := k.step(t.Context()); err == nil || !strings.Contains(err.Error(), "not asked yet") {
		t.Errorf("unreachable validator: %v", err)
	}
	if right, policy := look(); !right || policy != admissionregv1.Ignore {
		t.Errorf("before the probe: caBundle right %v, policy %s", right, policy)
	}
	reachable = true
	for range 2 {
		if err := k.step(t.Context()); err != nil {
			t.Fatal(err)
		}
		if right, policy := look(); !right || policy != admissionregv1.Fail {
			t.Errorf("after the probe: caBundle right %v, policy %s", right, policy)
		}
	}
	// Without configurations, or without a root, there is nothing to do.
	k.client = fakeClient()
	if err := k.step(t.Context()); err != nil {
		t.Errorf("without configurations: %v", err)
	}
	k.authority = newTestAuthority(t, at(epoch))
	if err := k.step(t.Context()); err != nil {
		t.Errorf("without a root: %v", err)
	}
}

type errText string

func (e errText) Error() string { return string(e) }

func TestCondition(t *testing.T) {
	obj := newPolicy(discovery.KindPeerAuthentication)
	obj.SetGeneration(3)
	obj.Object["status"] = map[string]any{"conditions": []any{map[string]any{"type": "Other", "status": "True"}}}
	set := func(v discovery.Verdict, now time.Time) bool {
		conditions, changed := withConditions(obj, []condition{{conditionAccepted, statusOf(v.Accepted), v.Reason, v.Message}}, now)
		if changed {
			obj.Object["status"] = map[string]any{"conditions": conditions}
		}
		return changed
	}
	last := func() map[string]any {
		all, _, err := unstructured.NestedSlice(obj.Object, "status", "conditions")
		if err != nil || len(all) != 2 {
			t.Fatalf("conditions %v %v", all, err)
		}
		c, ok := all[1].(map[string]any)
		if !ok {
			t.Fatalf("condition %v", all[1])
		}
		return c
	}
	good := discovery.Verdict{Accepted: true, Reason: "Accepted", Message: "in force at 1 workload"}
	more := discovery.Verdict{Accepted: true, Reason: "Accepted", Message: "in force at 2 workloads"}
	bad := discovery.Verdict{Reason: "Invalid", Message: "x"}
	for i, step := range []struct {
		v       discovery.Verdict
		after   time.Duration
		changed bool
		since   time.Duration
	}{
		{good, 0, true, 0},
		{good, time.Second, false, 0}, // no loop of updates
		{more, 2 * time.Second, true, 0},
		{bad, 3 * time.Second, true, 3 * time.Second},
		{good, 4 * time.Second, true, 4 * time.Second},
		{good, 5 * time.Second, true, 4 * time.Second}, // another generation
	} {
		generation := int64(3)
		if i == 5 {
			generation = 4
		}
		obj.SetGeneration(generation)
		if changed := set(step.v, epoch.Add(step.after)); changed != step.changed {
			t.Errorf("step %d: changed %v", i, changed)
		}
		c := last()
		if c["message"] != step.v.Message || c["lastTransitionTime"] != epoch.Add(step.since).Format(time.RFC3339) || c["observedGeneration"] != generation {
			t.Errorf("step %d: %v", i, c)
		}
	}
}

// TestStatusIsWritten proves contract 1.6.
func TestStatusIsWritten(t *testing.T) {
	obj := newPolicy(discovery.KindPeerAuthentication)
	obj.SetNamespace("shop")
	obj.SetName("p")
	obj.Object["spec"] = map[string]any{}
	c := fake.NewClientBuilder().WithScheme(newScheme()).WithObjects(obj).WithStatusSubresource(newPolicy(discovery.KindPeerAuthentication)).Build()
	s := &statusWriter{client: c, now: at(epoch), log: quietLog, written: map[discovery.Key]writing{}}
	key := discovery.Key{Kind: discovery.KindPeerAuthentication, Namespace: "shop", Name: "p"}
	for _, k := range []discovery.Key{key, {Kind: key.Kind, Namespace: "shop", Name: "gone"}} {
		if wrote, err := s.write(t.Context(), k, []condition{{conditionAccepted, "True", "Accepted", "m"}, {conditionEnforced, "False", "Progressing", "n"}}); err != nil || wrote != (k == key) {
			t.Errorf("%s: %v %v", k, wrote, err)
		}
	}
	got := newPolicy(discovery.KindPeerAuthentication)
	if err := c.Get(t.Context(), types.NamespacedName{Namespace: "shop", Name: "p"}, got); err != nil {
		t.Fatal(err)
	}
	conditions, _, err := unstructured.NestedSlice(got.Object, "status", "conditions")
	if err != nil || len(conditions) != 2 {
		t.Errorf("conditions %v %v", conditions, err)
	}
	// What changes by itself is written again only after a while, and nothing twice.
	for _, step := range []struct {
		after   time.Duration
		message string
		wrote   bool
	}{{time.Second, "o", false}, {statusAgain, "o", true}, {3 * statusAgain, "o", false}} {
		s.now = at(epoch.Add(step.after))
		if wrote, err := s.write(t.Context(), key, []condition{{conditionAccepted, "True", "Accepted", step.message}}); err != nil || wrote != step.wrote {
			t.Errorf("after %s: wrote %v, %v", step.after, wrote, err)
		}
	}
}
