package install

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"podseal.io/podseal/internal/settings"
)

const (
	proxyContainer   = "istio-proxy"
	statusAnnotation = "sidecar.istio.io/status" // on every injected pod (contract 5.12)
	revLabel         = "istio.io/rev"
	injectLabel      = "sidecar.istio.io/inject"
	rootKey          = "root-cert.pem"
	rootSoon         = 30 * 24 * time.Hour
)

// root reads the bundle that namespace has, "" if it has none.
func (c *Checker) root(ctx context.Context, namespace string) (string, error) {
	cm := &corev1.ConfigMap{}
	err := c.Client.Get(ctx, types.NamespacedName{Namespace: namespace, Name: settings.RootConfigMap}, cm)
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	return cm.Data[rootKey], err
}

func (c *Checker) webhooks(ctx context.Context) *finding {
	const hint = "the manager registers them and the control plane signs them: kubectl -n podseal-system logs deployment/podseal-manager; kubectl -n d8-istio logs deployment/istiod"
	root, err := c.root(ctx, settings.Namespace)
	if err != nil {
		return cannotLook(err)
	}
	bundles := map[string][]byte{}
	mutating := &admissionv1.MutatingWebhookConfiguration{}
	if err := c.Client.Get(ctx, types.NamespacedName{Name: InjectorName}, mutating); err != nil {
		return failed(hint, "MutatingWebhookConfiguration %s: %v", InjectorName, err)
	}
	for _, hook := range mutating.Webhooks {
		bundles[hook.Name] = hook.ClientConfig.CABundle
		if hook.FailurePolicy == nil || *hook.FailurePolicy != admissionv1.Fail {
			return failed(hint, "%s lets pods start without a proxy: its failurePolicy is not Fail", hook.Name)
		}
	}
	validating := &admissionv1.ValidatingWebhookConfiguration{}
	if err := c.Client.Get(ctx, types.NamespacedName{Name: ValidatorName}, validating); err != nil {
		return failed(hint, "ValidatingWebhookConfiguration %s: %v", ValidatorName, err)
	}
	for _, hook := range validating.Webhooks {
		bundles[hook.Name] = hook.ClientConfig.CABundle
	}
	for name, bundle := range bundles {
		if len(bundle) == 0 || strings.TrimSpace(string(bundle)) != strings.TrimSpace(root) {
			return failed(hint, "%s: caBundle is not the mesh root", name)
		}
	}
	return nil
}

// injectorAnswers lets the API server create a pod that asks for a proxy, as a
// dry run.
func (c *Checker) injectorAnswers(ctx context.Context) *finding {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, GenerateName: "podseal-check-", Labels: map[string]string{injectLabel: "true"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "check", Image: "podseal.io/check"}}},
	}
	namespace := &corev1.Namespace{}
	if err := c.Client.Get(ctx, types.NamespacedName{Name: metav1.NamespaceDefault}, namespace); err == nil && namespace.Labels["istio-injection"] == "disabled" {
		return warned("remove that label to have this checked", "not looked at: the namespace default is labelled istio-injection=disabled")
	}
	err := c.Client.Create(ctx, pod, client.DryRunAll)
	switch {
	case err == nil && hasProxy(pod):
		return nil
	case err == nil:
		return failed("kubectl -n d8-istio logs deployment/istiod", "a pod that asks for a proxy would start without one")
	case strings.Contains(err.Error(), "webhook"):
		return failed("see that the API server reaches Service d8-istio/istiod port 443: kubectl -n d8-istio get endpointslices; kubectl -n d8-istio logs deployment/istiod", "pods of the mesh cannot be created: %v", err)
	default:
		return warned("this says nothing about Podseal unless pods of the mesh are refused, too", "the test pod was refused: %v", err)
	}
}

// validatorAnswers reads what the control plane found out: it makes the
// failurePolicy Fail once the API server reaches the validator (contract 1.36).
func (c *Checker) validatorAnswers(ctx context.Context) *finding {
	validating := &admissionv1.ValidatingWebhookConfiguration{}
	if err := c.Client.Get(ctx, types.NamespacedName{Name: ValidatorName}, validating); err != nil {
		return cannotLook(err)
	}
	for _, hook := range validating.Webhooks {
		if hook.FailurePolicy != nil && *hook.FailurePolicy == admissionv1.Ignore {
			return warned("the control plane makes it Fail once the API server reaches it: kubectl -n d8-istio logs deployment/istiod", "%s: failurePolicy is still Ignore: a wrong policy would be admitted", hook.Name)
		}
	}
	return nil
}

func (c *Checker) rootValid(ctx context.Context) *finding {
	bundle, err := c.root(ctx, settings.Namespace)
	if err != nil {
		return cannotLook(err)
	}
	n := 0
	for rest := []byte(bundle); ; n++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return failed("see the Secrets cacerts and istio-ca-secret in d8-istio", "the root cannot be read: %v", err)
		}
		switch left := cert.NotAfter.Sub(c.Now); {
		case left <= 0:
			return failed("bring a new CA (Secret cacerts), then restart the workloads", "the root %q has expired on %s", cert.Subject, cert.NotAfter.Format(time.DateOnly))
		case left < rootSoon:
			return warned("bring a new CA (Secret cacerts): first both roots, then the new signer", "the root %q expires on %s", cert.Subject, cert.NotAfter.Format(time.DateOnly))
		case cert.NotBefore.After(c.Now):
			return failed("compare the clocks of the nodes and of this machine", "the root %q is valid only from %s", cert.Subject, cert.NotBefore.Format(time.RFC3339))
		}
	}
	if n == 0 {
		return failed("kubectl -n d8-istio logs deployment/istiod", "there is no root in ConfigMap d8-istio/%s", settings.RootConfigMap)
	}
	return nil
}

func (c *Checker) rootEverywhere(ctx context.Context) *finding {
	want, err := c.root(ctx, settings.Namespace)
	if err != nil {
		return cannotLook(err)
	}
	list := &corev1.NamespaceList{}
	if err := c.Client.List(ctx, list); err != nil {
		return cannotLook(err)
	}
	var wrong []string
	for _, ns := range list.Items {
		if slices.Contains([]string{"kube-public", "kube-node-lease", "local-path-storage"}, ns.Name) || ns.DeletionTimestamp != nil {
			continue // contract 4.29
		}
		have, err := c.root(ctx, ns.Name)
		if err != nil {
			return cannotLook(err)
		}
		if have != want {
			wrong = append(wrong, ns.Name)
		}
	}
	if len(wrong) > 0 {
		return failed("kubectl -n d8-istio logs deployment/istiod", "ConfigMap %s is missing or not the mesh root in: %s", settings.RootConfigMap, some(wrong))
	}
	return nil
}

// some shows the first of many names.
func some(names []string) string {
	const most = 5
	slices.Sort(names)
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

// injectedPods returns the pods that have a proxy and are not ending.
func injectedPods(ctx context.Context, c client.Client) ([]corev1.Pod, error) {
	list := &corev1.PodList{}
	if err := c.List(ctx, list); err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	return slices.DeleteFunc(list.Items, func(p corev1.Pod) bool {
		return p.Annotations[statusAnnotation] == "" || over(&p)
	}), nil
}

func over(p *corev1.Pod) bool {
	return p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

func hasProxy(p *corev1.Pod) bool { return proxyImage(p) != "" }

func proxyImage(p *corev1.Pod) string {
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		if c.Name == proxyContainer {
			return c.Image
		}
	}
	return ""
}

func (c *Checker) podsReady(ctx context.Context) *finding {
	pods, err := injectedPods(ctx, c.Client)
	if err != nil {
		return cannotLook(err)
	}
	var not []string
	for _, p := range pods {
		ready := slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		})
		if !ready {
			not = append(not, p.Namespace+"/"+p.Name)
		}
	}
	if len(not) > 0 {
		return warned("kubectl -n NAMESPACE describe pod NAME; kubectl -n NAMESPACE logs NAME -c istio-proxy (or -c istio-init)", "%d of %d are not: %s", len(not), len(pods), some(not))
	}
	return nil
}

// proxyImage is the image of the proxy that new pods get.
func (c *Checker) proxyImage(ctx context.Context) (string, error) {
	d := &appsv1.Deployment{}
	if err := c.Client.Get(ctx, types.NamespacedName{Namespace: settings.Namespace, Name: "istiod"}, d); err != nil {
		return "", err
	}
	for _, arg := range d.Spec.Template.Spec.Containers[0].Args {
		if v, ok := strings.CutPrefix(arg, "--proxy-image="); ok {
			return v, nil
		}
	}
	return "", nil
}

func (c *Checker) proxyVersions(ctx context.Context) *finding {
	want, err := c.proxyImage(ctx)
	if err != nil {
		return cannotLook(err)
	}
	pods, err := injectedPods(ctx, c.Client)
	if err != nil {
		return cannotLook(err)
	}
	var other []string
	for _, p := range pods {
		if proxyImage(&p) != want {
			other = append(other, p.Namespace+"/"+p.Name)
		}
	}
	if len(other) > 0 {
		return warned("restart them when it suits: kubectl -n NAMESPACE rollout restart deployment", "%d of %d run another proxy than %s: %s", len(other), len(pods), want, some(other))
	}
	return nil
}

// withoutProxy names the pods in namespaces of the mesh that have no proxy and
// didn't ask to have none: those that could have one, and those on the network of
// their node.
func (c *Checker) withoutProxy(ctx context.Context) (without, never []string, err error) {
	s, err := c.settings(ctx)
	if err != nil {
		return nil, nil, err
	}
	namespaces := &corev1.NamespaceList{}
	if err := c.Client.List(ctx, namespaces); err != nil {
		return nil, nil, err
	}
	for _, ns := range namespaces.Items {
		in := ns.Labels["istio-injection"] == "enabled" || (ns.Labels["istio-injection"] == "" && s.Serves(ns.Labels[revLabel]))
		if !in {
			continue
		}
		pods := &corev1.PodList{}
		if err := c.Client.List(ctx, pods, client.InNamespace(ns.Name)); err != nil {
			return nil, nil, err
		}
		for _, p := range pods.Items {
			optedOut := p.Labels[injectLabel] == "false" || p.Annotations[injectLabel] == "false"
			switch {
			case optedOut, over(&p), hasProxy(&p):
			case p.Spec.HostNetwork:
				never = append(never, p.Namespace+"/"+p.Name)
			default:
				without = append(without, p.Namespace+"/"+p.Name)
			}
		}
	}
	return without, never, nil
}

// settings are those that the ModuleConfig has, the defaults where they are wrong,
// which another check says.
func (c *Checker) settings(ctx context.Context) (settings.Settings, error) {
	mc, err := c.ModuleConfig(ctx)
	if err != nil || mc == nil {
		return settings.Default(""), err
	}
	s, _, _ := settings.Parse(mc, settings.Cluster{})
	return s, nil
}

// revisions finds namespaces and pods that ask for a control plane which nobody
// is: they have no proxy, and nothing else says so (contract 5.3).
func (c *Checker) revisions(ctx context.Context) *finding {
	s, err := c.settings(ctx)
	if err != nil {
		return cannotLook(err)
	}
	foreign := map[string]bool{}
	var who []string
	namespaces := &corev1.NamespaceList{}
	if err := c.Client.List(ctx, namespaces, client.HasLabels{revLabel}); err != nil {
		return cannotLook(err)
	}
	see := func(what, name string, labels map[string]string) {
		if rev := labels[revLabel]; rev != "" && !s.Serves(rev) {
			foreign[rev] = true
			who = append(who, what+" "+name)
		}
	}
	for _, ns := range namespaces.Items {
		if ns.Labels["istio-injection"] == "" {
			see("namespace", ns.Name, ns.Labels)
		}
	}
	pods := &corev1.PodList{}
	if err := c.Client.List(ctx, pods, client.HasLabels{revLabel}); err != nil {
		return cannotLook(err)
	}
	for _, p := range pods.Items {
		if !hasProxy(&p) {
			see("pod", p.Namespace+"/"+p.Name, p.Labels)
		}
	}
	if len(who) > 0 {
		return warned("write the version into ModuleConfig istio (v1x27: settings.globalVersion \"1.27\", or additionalVersions), or label them istio.io/rev="+settings.DefaultRevision,
			"no control plane is called %s, so there is no proxy: %s", strings.Join(slices.Sorted(maps.Keys(foreign)), ", "), some(who))
	}
	return nil
}

// uncaptured finds pods that were created before their namespace joined the
// mesh, or while something was wrong (contract 5.7).
func (c *Checker) uncaptured(ctx context.Context) *finding {
	without, _, err := c.withoutProxy(ctx)
	if err != nil {
		return cannotLook(err)
	}
	if len(without) > 0 {
		return warned("their traffic is not encrypted; restart them: kubectl -n NAMESPACE rollout restart deployment",
			"%s no proxy, in namespaces of the mesh: %s", countOf(len(without), "pod has", "pods have"), some(without))
	}
	return nil
}

// onTheNode finds pods in namespaces of the mesh that can have no proxy since
// they use the network of their node (contract 5.6).
func (c *Checker) onTheNode(ctx context.Context) *finding {
	_, never, err := c.withoutProxy(ctx)
	if err != nil {
		return cannotLook(err)
	}
	if len(never) > 0 {
		return warned("their traffic is not encrypted, and STRICT pods refuse it; give them a network of their own, or say that this is meant: label "+injectLabel+"=false on the pod",
			"%s the network of the node (hostNetwork), which a proxy must not capture: %s", countOf(len(never), "pod uses", "pods use"), some(never))
	}
	return nil
}

// policiesAccepted finds policies that the control plane passes over.
func (c *Checker) policiesAccepted(ctx context.Context) *finding {
	var not []string
	all := 0
	for _, kind := range [...]struct{ version, kind string }{{"security.istio.io/v1", "PeerAuthentication"}, {"security.istio.io/v1", "AuthorizationPolicy"}, {"security.istio.io/v1", "RequestAuthentication"}, {"networking.istio.io/v1", "DestinationRule"}, {"networking.istio.io/v1", "ServiceEntry"}} {
		list := &unstructured.UnstructuredList{}
		list.SetAPIVersion(kind.version)
		list.SetKind(kind.kind + "List")
		if err := c.Client.List(ctx, list); meta.IsNoMatchError(err) {
			continue // which is said above
		} else if err != nil {
			return cannotLook(err)
		}
		all += len(list.Items)
		for i := range list.Items {
			if condition(&list.Items[i], "Accepted") == "False" {
				not = append(not, kind.kind+" "+list.Items[i].GetNamespace()+"/"+list.Items[i].GetName())
			}
		}
	}
	if len(not) > 0 {
		return warned("their conditions say why: kubectl -n NAMESPACE describe KIND NAME", "%d of %d are not: %s", len(not), all, some(not))
	}
	return nil
}

// VersionOf reads which version a Deployment of ours runs, "" if it isn't
// there.
func VersionOf(ctx context.Context, c client.Client, namespace, name string) (string, error) {
	d := &appsv1.Deployment{}
	err := c.Get(ctx, types.NamespacedName{Namespace: namespace, Name: name}, d)
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read Deployment %s/%s: %w", namespace, name, err)
	}
	image := d.Spec.Template.Spec.Containers[0].Image
	return image[strings.LastIndex(image, ":")+1:], nil
}
