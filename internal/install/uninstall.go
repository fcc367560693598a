package install

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"podseal.io/podseal/api/deckhouse/v1alpha1"
	"podseal.io/podseal/internal/settings"
)

// Uninstall says what to keep.
type Uninstall struct {
	// KeepCA keeps the namespace d8-istio with the Secrets istio-ca-secret and
	// cacerts, so that a later install gives the same identities.
	KeepCA bool
	// KeepCRDs keeps the CRDs, and with them ModuleConfig istio (disabled) and
	// all policies.
	KeepCRDs bool
	// Progress is told what is waited for.
	Progress func(text string, elapsed time.Duration)
}

// ownerControlPlane owns the Pod Security labels that the control plane sets.
const ownerControlPlane = "podseal-control-plane"

// Remove takes Podseal out of the cluster: first the manager, so that nothing
// is put back; then the webhooks, so that nothing blocks the creation of pods;
// then the control plane, the CNI plugin from the nodes, and the rest. It may be repeated. The result are the pods, as
// namespace/name, that still run with a proxy: they go on as they are until
// they are restarted.
func (c *Cluster) Remove(ctx context.Context, cfg Uninstall) ([]string, error) {
	managerPart, err := Render(nil, PartManager)
	if err != nil {
		return nil, err
	}
	m := Manager{}
	controlPlanePart, err := m.everything()
	if err != nil {
		return nil, err
	}
	deployments := func(objects []*unstructured.Unstructured) []*unstructured.Unstructured {
		return slices.DeleteFunc(slices.Clone(objects), func(u *unstructured.Unstructured) bool { return u.GetKind() != "Deployment" })
	}
	controlPlanePart = withoutCNI(controlPlanePart)
	for _, part := range [][]*unstructured.Unstructured{deployments(managerPart), controlPlanePart} {
		if err := c.Delete(ctx, part); err != nil {
			return nil, err
		}
		if err := Wait(ctx, c.podsGone(deployments(part)), cfg.Progress); err != nil {
			return nil, err
		}
	}
	began := time.Now()
	if err := Wait(ctx, func(ctx context.Context) (string, error) { return c.removeCNI(ctx, began) }, cfg.Progress); err != nil {
		return nil, err
	}
	if err := c.removeTraces(ctx, cfg); err != nil {
		return nil, err
	}
	if cfg.KeepCRDs {
		managerPart = slices.DeleteFunc(managerPart, func(u *unstructured.Unstructured) bool { return u.GetKind() == "CustomResourceDefinition" })
	}
	if !cfg.KeepCA {
		managerPart = append(managerPart, objectNamed("v1", "Namespace", "", settings.Namespace))
	}
	if err := c.Delete(ctx, managerPart); err != nil {
		return nil, err
	}
	going := slices.DeleteFunc(managerPart, func(u *unstructured.Unstructured) bool {
		return u.GetKind() != "CustomResourceDefinition" && u.GetKind() != "Namespace"
	})
	if err := Wait(ctx, c.gone(going), cfg.Progress); err != nil {
		return nil, err
	}
	return c.stillInjected(ctx)
}

// podsGone waits for the pods of deleted Deployments: while one lives, it may
// write back what is being removed.
func (c *Cluster) podsGone(deployments []*unstructured.Unstructured) Pending {
	return func(ctx context.Context) (string, error) {
		for _, d := range deployments {
			app, _, _ := unstructured.NestedString(d.Object, "spec", "selector", "matchLabels", "app")
			pods := &corev1.PodList{}
			if err := c.Client.List(ctx, pods, client.InNamespace(d.GetNamespace()), client.MatchingLabels{"app": app, partOfLabel: partOf}); err != nil {
				return "", fmt.Errorf("list the pods of %s: %w", describe(d), err)
			}
			if n := len(pods.Items); n > 0 {
				return fmt.Sprintf("%s of %s to end", countOf(n, "pod", "pods"), describe(d)), nil
			}
		}
		return "", nil
	}
}

// gone waits for objects of ours.
func (c *Cluster) gone(objects []*unstructured.Unstructured) Pending {
	return func(ctx context.Context) (string, error) {
		for _, u := range objects {
			now, err := c.get(ctx, u)
			if err != nil {
				return "", fmt.Errorf("look at %s: %w", describe(u), err)
			}
			if now != nil && isOurs(now) {
				return describe(u) + " to be gone", nil
			}
		}
		return "", nil
	}
}

// removeTraces removes what Podseal has written into namespaces of others, and
// its ModuleConfig.
func (c *Cluster) removeTraces(ctx context.Context, cfg Uninstall) error {
	var errs []error
	roots := &corev1.ConfigMapList{}
	if err := c.Client.List(ctx, roots, client.MatchingLabels{"istio.io/config": "true"}); err != nil {
		return fmt.Errorf("list the root ConfigMaps: %w", err)
	}
	for _, cm := range roots.Items {
		if cm.Name == settings.RootConfigMap {
			errs = append(errs, client.IgnoreNotFound(c.Client.Delete(ctx, &cm)))
		}
	}
	namespaces := &corev1.NamespaceList{}
	if err := c.Client.List(ctx, namespaces); err != nil {
		return fmt.Errorf("list namespaces: %w", err)
	}
	for _, ns := range namespaces.Items {
		errs = append(errs, c.removeOwnLabels(ctx, &ns))
	}
	crd, err := c.get(ctx, crdNamed(v1alpha1.ModuleConfigs+"."+v1alpha1.Group))
	if err != nil {
		errs = append(errs, fmt.Errorf("look whose the ModuleConfig CRD is: %w", err))
	}
	if crd != nil && isOurs(crd) && cfg.KeepCRDs {
		mc := &v1alpha1.ModuleConfig{ObjectMeta: metav1.ObjectMeta{Name: settings.ModuleName}}
		err := c.Client.Patch(ctx, mc, client.RawPatch(types.MergePatchType, []byte(`{"spec":{"enabled":false}}`)))
		if !meta.IsNoMatchError(err) {
			errs = append(errs, client.IgnoreNotFound(err))
		}
	}
	return errors.Join(errs...)
}

// removeOwnLabels removes the Pod Security labels that the control plane owns
// on a namespace, and no others.
func (c *Cluster) removeOwnLabels(ctx context.Context, ns *corev1.Namespace) error {
	null := map[string]any{}
	for _, entry := range ns.ManagedFields {
		if entry.Manager != ownerControlPlane || entry.FieldsV1 == nil {
			continue
		}
		var owned struct {
			Metadata struct {
				Labels map[string]any `json:"f:labels"`
			} `json:"f:metadata"`
		}
		if err := json.Unmarshal(entry.FieldsV1.GetRawBytes(), &owned); err != nil {
			return fmt.Errorf("read who owns the labels of namespace %s: %w", ns.Name, err)
		}
		for field := range owned.Metadata.Labels {
			label := strings.TrimPrefix(field, "f:")
			if strings.HasPrefix(label, "pod-security.kubernetes.io/") {
				null[label] = nil
			}
		}
	}
	if len(null) == 0 {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": null}})
	if err != nil {
		return fmt.Errorf("write a patch as JSON: %w", err)
	}
	if err := c.Client.Patch(ctx, ns, client.RawPatch(types.MergePatchType, patch)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("remove the Pod Security labels of namespace %s: %w", ns.Name, err)
	}
	return nil
}

// stillInjected names the pods that still run with a proxy.
func (c *Cluster) stillInjected(ctx context.Context) ([]string, error) {
	pods, err := injectedPods(ctx, c.Client)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(pods))
	for i, p := range pods {
		names[i] = p.Namespace + "/" + p.Name
	}
	slices.Sort(names)
	return names, nil
}

// DetectClusterDomain reads the cluster's DNS domain from CoreDNS's
// configuration (the first zone of its plugin kubernetes), "" if it isn't to be
// found there.
func DetectClusterDomain(ctx context.Context, c client.Client) string {
	cm := &corev1.ConfigMap{}
	if err := c.Get(ctx, types.NamespacedName{Namespace: metav1.NamespaceSystem, Name: "coredns"}, cm); err != nil {
		return ""
	}
	return parseCorefile(cm.Data["Corefile"])
}

// parseCorefile returns the first forward zone of the plugin kubernetes.
func parseCorefile(text string) string {
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] != "kubernetes" {
			continue
		}
		for _, zone := range words[1:] {
			zone = strings.ToLower(strings.TrimSuffix(zone, "."))
			if zone != "{" && zone != "" && !strings.HasSuffix(zone, ".arpa") && !strings.Contains(zone, "/") && !strings.Contains(zone, "{") {
				return zone
			}
		}
	}
	return ""
}
