package install

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func render(t *testing.T, part Part, sets ...string) []*unstructured.Unstructured {
	t.Helper()
	values, err := ParseValues(nil, append([]string{"image.tag=v1"}, sets...))
	if err != nil {
		t.Fatal(err)
	}
	objects, err := Render(values, part)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func TestRenderGolden(t *testing.T) {
	for name, tc := range map[string]struct {
		part Part
		sets []string
	}{
		"manager":          {PartManager, nil},
		"manager-values":   {PartManager, []string{"image.hub=registry.example.com/mesh", "imagePullPolicy=Always", "imagePullSecrets[0].name=registry", "clusterDomain=corp.example", "namespace.create=false", "crds.moduleConfig=false", "crds.peerAuthentication=false", "crds.authorizationPolicy=false", "crds.requestAuthentication=false", "crds.destinationRule=false", "crds.serviceEntry=false", "manager.nodeSelector.pool=system"}},
		"controlplane":     {PartControlPlane, nil},
		"controlplane-cni": {PartControlPlane, []string{"cni.mode=install", "cni.cniBinDir=/usr/libexec/cni", "cni.excludeNamespaces={kube-system,infra}"}},
		"controlplane-ha":  {PartControlPlane, []string{"controlPlane.replicas=3", "controlPlane.resources.limits.memory=1Gi", "controlPlane.tolerations[0].operator=Exists", "imagePullSecrets[0].name=registry"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := AppendYAML(nil, slices.DeleteFunc(render(t, tc.part, tc.sets...), func(u *unstructured.Unstructured) bool {
				return strings.HasSuffix(u.GetName(), ".istio.io") && u.GetKind() == "CustomResourceDefinition" // TestOfficialCRD has it
			}))
			if err != nil {
				t.Fatal(err)
			}
			golden(t, filepath.Join("testdata", name+".yaml"), got)
		})
	}
}

func TestRenderRefusesWrongValues(t *testing.T) {
	values, err := ParseValues([]byte("image: {hubb: x}\ncontrolPlane: {replicas: 0}"), []string{"imagePullPolicy=Sometimes"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = Render(values, PartManager)
	if err == nil {
		t.Fatal("wrong values are accepted")
	}
	for _, want := range []string{"hubb", "replicas", "imagePullPolicy"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not name %s: %v", want, err)
		}
	}
	if _, err := ParseValues(nil, []string{"image.hub"}); err == nil || !strings.Contains(err.Error(), "KEY=VALUE") {
		t.Errorf("a --set without a value: %v", err)
	}
	if _, err := ParseValues([]byte("- a"), nil); err == nil {
		t.Error("a list is accepted as values")
	}
}

// Webhooks first in, first out: a pod of the mesh is never created without its
// proxy, and nothing that could block the creation of pods is left behind.
func TestOrder(t *testing.T) {
	kinds := func(objects []*unstructured.Unstructured) (k []string) {
		for _, u := range objects {
			k = append(k, u.GetKind())
		}
		return k
	}
	objects := render(t, PartControlPlane)
	if got := kinds(objects)[:3]; !slices.Equal(got, []string{"Namespace", "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"}) {
		t.Errorf("applied first: %v", got)
	}
	got := kinds(deletionOrder(objects))
	if !strings.HasSuffix(got[0], "WebhookConfiguration") || !strings.HasSuffix(got[1], "WebhookConfiguration") || got[2] != "Deployment" || got[len(got)-1] != "Namespace" {
		t.Errorf("deletion order: %v", got)
	}
}

func TestLabels(t *testing.T) { // ecosystem conventions
	for _, part := range []Part{PartManager, PartControlPlane} {
		for _, u := range render(t, part, "controlPlane.replicas=2") {
			for _, l := range []string{"name", "instance", "version", "component", "part-of", "managed-by"} {
				if u.GetLabels()["app.kubernetes.io/"+l] == "" {
					t.Errorf("%s has no label app.kubernetes.io/%s", describe(u), l)
				}
			}
			if u.GetLabels()["heritage"] != "" {
				t.Errorf("%s has the label heritage, which is Deckhouse's", describe(u))
			}
		}
	}
}

// The official CRD keeps its rules, and no CRD comes of a policy that isn't
// enforced: who can create one would believe it to be in force.
func TestCRDs(t *testing.T) { // contract 1.1, 1.34
	var names []string
	for _, u := range render(t, PartManager) {
		if u.GetKind() == "CustomResourceDefinition" {
			names = append(names, u.GetName())
		}
	}
	slices.Sort(names)
	if want := []string{"authorizationpolicies.security.istio.io", "destinationrules.networking.istio.io", "moduleconfigs.deckhouse.io", "peerauthentications.security.istio.io", "requestauthentications.security.istio.io", "serviceentries.networking.istio.io"}; !slices.Equal(names, want) {
		t.Errorf("CRDs %v, want %v", names, want)
	}
}

// contract 5.1, 5.2
func TestInjectorShape(t *testing.T) {
	for _, hook := range injector(t).Webhooks {
		if *hook.FailurePolicy != admissionv1.Fail || *hook.ReinvocationPolicy != admissionv1.NeverReinvocationPolicy || *hook.SideEffects != admissionv1.SideEffectClassNone {
			t.Errorf("%s: failurePolicy %s, reinvocationPolicy %s, sideEffects %s", hook.Name, *hook.FailurePolicy, *hook.ReinvocationPolicy, *hook.SideEffects)
		}
		if s := hook.ClientConfig.Service; s.Namespace != "d8-istio" || s.Name != "istiod" || *s.Path != "/inject" || *s.Port != 443 {
			t.Errorf("%s calls %v", hook.Name, s)
		}
		if len(hook.ClientConfig.CABundle) != 0 {
			t.Errorf("%s has a caBundle: it is the control plane's", hook.Name)
		}
	}
}

// TestControlPlaneOfBothFamilies: a pod with an IPv6 address only reaches the control
// plane of a dual-stack cluster.
func TestControlPlaneOfBothFamilies(t *testing.T) {
	s := &corev1.Service{}
	convert(t, find(t, render(t, PartControlPlane), "Service", "istiod"), s)
	if s.Spec.IPFamilyPolicy == nil || *s.Spec.IPFamilyPolicy != corev1.IPFamilyPolicyPreferDualStack {
		t.Errorf("%+v", s.Spec)
	}
}

func injector(t *testing.T, sets ...string) *admissionv1.MutatingWebhookConfiguration {
	t.Helper()
	out := &admissionv1.MutatingWebhookConfiguration{}
	convert(t, find(t, render(t, PartControlPlane, sets...), "MutatingWebhookConfiguration", InjectorName), out)
	return out
}

func convert(t *testing.T, u *unstructured.Unstructured, out any) {
	t.Helper()
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, out); err != nil {
		t.Fatal(err)
	}
}

func find(t *testing.T, objects []*unstructured.Unstructured, kind, name string) *unstructured.Unstructured {
	t.Helper()
	for _, u := range objects {
		if u.GetKind() == kind && u.GetName() == name {
			return u
		}
	}
	t.Fatalf("no %s %s", kind, name)
	return nil
}

// TestInjectionMatrix holds the selectors against every combination of labels
// and the table of contract 5.3, and at most one entry may take a pod (5.2).
func TestInjectionMatrix(t *testing.T) { // contract 5.2, 5.3, 5.5
	for name, sets := range map[string][]string{"default": nil, "v1x27": {"revisions={v1x27,v1x25}"}} {
		t.Run(name, func(t *testing.T) { testInjectionMatrix(t, name, sets) })
	}
}

func testInjectionMatrix(t *testing.T, ours string, sets []string) {
	t.Helper()
	hooks := injector(t, sets...).Webhooks
	const absent = "-"
	set := func(m map[string]string, k, v string) {
		if v != absent {
			m[k] = v
		}
	}
	for _, nsI := range []string{absent, "enabled", "disabled", "yes", ""} {
		for _, nsR := range []string{absent, ours, "other"} {
			for _, podI := range []string{absent, "true", "false", "other"} {
				for _, podR := range []string{absent, ours, "other"} {
					ns := map[string]string{"kubernetes.io/metadata.name": "shop"}
					set(ns, "istio-injection", nsI)
					set(ns, "istio.io/rev", nsR)
					pod := map[string]string{}
					set(pod, "sidecar.istio.io/inject", podI)
					set(pod, "istio.io/rev", podR)
					var got []string
					for _, hook := range hooks {
						if matches(t, hook.NamespaceSelector, ns) && matches(t, hook.ObjectSelector, pod) {
							got = append(got, strings.TrimSuffix(hook.Name, ".sidecar-injector.istio.io"))
						}
					}
					want := contract53(ours, nsI, nsR, podI, podR)
					if strings.Join(got, " ") != want {
						t.Errorf("istio-injection=%s istio.io/rev=%s, pod inject=%s rev=%s: injected by %v, want %q", nsI, nsR, podI, podR, got, want)
					}
				}
			}
		}
	}
	for _, name := range []string{"kube-system", "kube-public", "kube-node-lease", "local-path-storage", "d8-istio", "podseal-system"} {
		for _, hook := range hooks {
			if matches(t, hook.NamespaceSelector, map[string]string{"kubernetes.io/metadata.name": name, "istio-injection": "enabled"}) {
				t.Errorf("%s takes pods of %s", hook.Name, name)
			}
		}
	}
}

// contract53 is the table of contract 5.3 for a revision that is ours.
func contract53(ours, nsI, nsR, podI, podR string) string {
	switch {
	case nsI == "enabled" && podI != "false":
		return "namespace"
	case nsI != "-" || podI == "false":
		return ""
	case nsR == ours:
		return "rev.namespace"
	case nsR != "-":
		return "" // another revision's
	case podR == ours:
		return "rev.object"
	case podR == "-" && podI == "true":
		return "object"
	}
	return ""
}

func matches(t *testing.T, selector *metav1.LabelSelector, set map[string]string) bool {
	t.Helper()
	s, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		t.Fatal(err)
	}
	return s.Matches(labels.Set(set))
}

// contract 1.36, 1.37: unlabelled objects and those of our revision, each by
// one entry; not those of another revision.
func TestValidatorSelectors(t *testing.T) {
	config := &admissionv1.ValidatingWebhookConfiguration{}
	convert(t, find(t, render(t, PartControlPlane, "revisions={v1x27}"), "ValidatingWebhookConfiguration", ValidatorName), config)
	for rev, want := range map[string]int{"": 1, "default": 1, "v1x27": 1, "other": 0} {
		set := map[string]string{}
		if rev != "" {
			set["istio.io/rev"] = rev
		}
		n := 0
		for _, hook := range config.Webhooks {
			if matches(t, hook.ObjectSelector, set) {
				n++
			}
			if *hook.FailurePolicy != admissionv1.Ignore {
				t.Errorf("%s starts with failurePolicy %s", hook.Name, *hook.FailurePolicy)
			}
			// Every kind: what is not honoured gets a warning by name.
			groups := []string{"security.istio.io", "networking.istio.io", "telemetry.istio.io", "extensions.istio.io"}
			if r := hook.Rules[0]; !slices.Equal(r.APIGroups, groups) || !slices.Equal(r.APIVersions, []string{"*"}) || !slices.Equal(r.Resources, []string{"*"}) {
				t.Errorf("%s looks at %v %v %v", hook.Name, r.APIGroups, r.APIVersions, r.Resources)
			}
		}
		if n != want {
			t.Errorf("istio.io/rev=%q is validated by %d entries, want %d", rev, n, want)
		}
	}
}

// TestManagerMayDoWhatItDoes holds the manager's ClusterRole against all that
// it applies and deletes, and against anything more.
func TestManagerMayDoWhatItDoes(t *testing.T) {
	role := &rbacv1.ClusterRole{}
	convert(t, find(t, render(t, PartManager), "ClusterRole", "podseal-manager"), role)
	objects, err := (&Manager{}).everything()
	if err != nil {
		t.Fatal(err)
	}
	needed := map[string]bool{"d8-istio namespaces": true}
	for _, u := range objects {
		resource := strings.ToLower(u.GetKind()) + "s"
		needed[u.GetName()+" "+resource] = true
		for _, verb := range []string{"get", "create", "patch", "delete"} {
			if !allows(role.Rules, u.GroupVersionKind().Group, resource, u.GetName(), verb) {
				t.Errorf("the manager may not %s %s", verb, describe(u))
			}
		}
	}
	for _, rule := range role.Rules {
		if len(rule.ResourceNames) == 0 {
			t.Errorf("the rule %v %v is not bound to names", rule.Resources, rule.Verbs)
		}
		for _, verb := range rule.Verbs {
			if verb == "*" {
				t.Errorf("the rule %v allows everything", rule.Resources)
			}
			for _, resource := range rule.Resources {
				for _, name := range rule.ResourceNames {
					if slices.Contains([]string{"create", "delete"}, verb) && !needed[name+" "+resource] {
						t.Errorf("the manager may %s %s %s but never does", verb, resource, name)
					}
				}
			}
		}
	}
}

func allows(rules []rbacv1.PolicyRule, group, resource, name, verb string) bool {
	return slices.ContainsFunc(rules, func(r rbacv1.PolicyRule) bool {
		return slices.Contains(r.APIGroups, group) && slices.Contains(r.Resources, resource) &&
			slices.Contains(r.ResourceNames, name) && slices.Contains(r.Verbs, verb)
	})
}

// Whoever binds a role must hold it or may bind it: the manager binds exactly
// the roles of the control plane.
func TestManagerBindsOnlyTheControlPlanesRoles(t *testing.T) {
	role := &rbacv1.ClusterRole{}
	convert(t, find(t, render(t, PartManager), "ClusterRole", "podseal-manager"), role)
	objects, err := (&Manager{}).everything()
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range objects {
		if !strings.HasSuffix(u.GetKind(), "RoleBinding") {
			continue
		}
		name, _, _ := unstructured.NestedString(u.Object, "roleRef", "name")
		if !allows(role.Rules, "rbac.authorization.k8s.io", "clusterroles", name, "bind") {
			t.Errorf("the manager may not bind %s, which %s does", name, describe(u))
		}
		find(t, render(t, PartManager), "ClusterRole", name)
	}
}

func FuzzParseValues(f *testing.F) {
	f.Add([]byte("image: {hub: x}"), "image.tag=v1")
	f.Add([]byte(""), "a[3].b={x,y}")
	f.Add([]byte("[]"), "=")
	f.Fuzz(func(t *testing.T, file []byte, set string) {
		if v, err := ParseValues(file, []string{set}); err == nil && v == nil {
			t.Error("no values and no error")
		}
	})
}
