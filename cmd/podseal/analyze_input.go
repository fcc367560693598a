package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"podseal.io/podseal/internal/analysis"
	"podseal.io/podseal/internal/controlplane"
	"podseal.io/podseal/internal/discovery"
	"podseal.io/podseal/internal/inject"
	"podseal.io/podseal/internal/install"
	"podseal.io/podseal/internal/settings"
)

// istioKinds are those that a cluster of a user of Istio may have.
func istioKinds() []schema.GroupVersionKind {
	var out []schema.GroupVersionKind
	for group, kinds := range map[string][]string{
		"security.istio.io":   {"PeerAuthentication", "AuthorizationPolicy", "RequestAuthentication"},
		"networking.istio.io": {"DestinationRule", "ServiceEntry", "VirtualService", "Gateway", "Sidecar", "EnvoyFilter", "WorkloadEntry", "WorkloadGroup", "ProxyConfig"},
		"telemetry.istio.io":  {"Telemetry"}, "extensions.istio.io": {"WasmPlugin"},
	} {
		for _, kind := range kinds {
			version := map[string]string{"EnvoyFilter": "v1alpha3", "ProxyConfig": "v1beta1", "WasmPlugin": "v1alpha1"}[kind]
			if version == "" {
				version = "v1"
			}
			out = append(out, schema.GroupVersionKind{Group: group, Version: version, Kind: kind})
		}
	}
	slices.SortFunc(out, func(a, b schema.GroupVersionKind) int { return strings.Compare(a.String(), b.String()) })
	return out
}

// readCluster reads what can be analyzed. What may not be listed, and can be done
// without, is in notes.
func readCluster(ctx context.Context, c client.Client, in *analysis.Input) (notes []string, err error) {
	var (
		pods       corev1.PodList
		services   corev1.ServiceList
		namespaces corev1.NamespaceList
	)
	for _, list := range []client.ObjectList{&pods, &services, &namespaces} {
		if err := c.List(ctx, list); err != nil {
			return nil, err
		}
	}
	in.Pods, in.Services, in.Namespaces = pointersTo(pods.Items), pointersTo(services.Items), pointersTo(namespaces.Items)
	for _, gvk := range istioKinds() {
		list := &unstructured.UnstructuredList{}
		list.SetGroupVersionKind(gvk.GroupVersion().WithKind(gvk.Kind + "List"))
		err := c.List(ctx, list)
		switch {
		case meta.IsNoMatchError(err), apierrors.IsNotFound(err): // the cluster has no such kind
		case err != nil:
			notes = append(notes, fmt.Sprintf("%s objects can't be listed, and are not looked at: %v", gvk.Kind, err))
		default:
			for i := range list.Items {
				addPolicy(in, &list.Items[i])
			}
		}
	}
	in.Webhooks = webhooksOf(ctx, c)
	cm := &corev1.ConfigMap{}
	if err := c.Get(ctx, client.ObjectKey{Namespace: settings.Namespace, Name: settings.RootConfigMap}, cm); err != nil {
		notes = append(notes, fmt.Sprintf("the roots can't be read: %v", err))
	}
	for _, text := range cm.Data {
		in.Roots = append(in.Roots, rootsOf([]byte(text))...)
	}
	return notes, nil
}

func pointersTo[T any](items []T) []*T {
	out := make([]*T, len(items))
	for i := range items {
		out[i] = &items[i]
	}
	return out
}

func addPolicy(in *analysis.Input, obj *unstructured.Unstructured) {
	if !controlplane.Honoured(obj.GroupVersionKind()) {
		in.Unhonoured = append(in.Unhonoured, obj)
		return
	}
	list := in.PoliciesOf(obj.GetKind())
	same := func(o *unstructured.Unstructured) bool {
		return o.GetNamespace() == obj.GetNamespace() && o.GetName() == obj.GetName()
	}
	if i := slices.IndexFunc(*list, same); i >= 0 {
		obj.SetCreationTimestamp((*list)[i].GetCreationTimestamp())
		(*list)[i] = obj
		return
	}
	*list = append(*list, obj)
}

// webhooksOf looks at the mesh's own.
func webhooksOf(ctx context.Context, c client.Client) []analysis.Webhook {
	var endpoints discoveryv1.EndpointSliceList
	answers := c.List(ctx, &endpoints, client.InNamespace(settings.Namespace), client.MatchingLabels{discoveryv1.LabelServiceName: "istiod"}) != nil
	for i := range endpoints.Items {
		for _, e := range endpoints.Items[i].Endpoints {
			answers = answers || e.Conditions.Ready == nil || *e.Conditions.Ready
		}
	}
	problem := func(err error, configs ...admissionv1.WebhookClientConfig) string {
		switch {
		case apierrors.IsNotFound(err):
			return "it is not there: the mesh is not enabled, or the manager does not work (`podseal check`)"
		case err != nil:
			return "" // nothing is known
		case !answers:
			return "no control plane is ready to answer it: new pods of the mesh wait, and policies are not checked"
		}
		for i := range configs {
			if len(configs[i].CABundle) == 0 {
				return "it has no caBundle, so the API server can't call it"
			}
		}
		return ""
	}
	mutating, validating := &admissionv1.MutatingWebhookConfiguration{}, &admissionv1.ValidatingWebhookConfiguration{}
	errMutating := c.Get(ctx, client.ObjectKey{Name: install.InjectorName}, mutating)
	errValidating := c.Get(ctx, client.ObjectKey{Name: install.ValidatorName}, validating)
	var m, v []admissionv1.WebhookClientConfig
	for i := range mutating.Webhooks {
		m = append(m, mutating.Webhooks[i].ClientConfig)
	}
	for i := range validating.Webhooks {
		v = append(v, validating.Webhooks[i].ClientConfig)
	}
	return []analysis.Webhook{
		{Kind: "MutatingWebhookConfiguration", Name: install.InjectorName, Problem: problem(errMutating, m...)},
		{Kind: "ValidatingWebhookConfiguration", Name: install.ValidatorName, Problem: problem(errValidating, v...)},
	}
}

// rootsOf reads certificates in PEM.
func rootsOf(text []byte) []analysis.Root {
	var out []analysis.Root
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return out
		}
		text = rest
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
			out = append(out, analysis.Root{Name: fmt.Sprintf("%x", cert.SerialNumber), NotAfter: cert.NotAfter})
		}
	}
}

// addObjects adds what stands in files, in the place of what is called so.
func addObjects(in *analysis.Input, objects []fileObject) error {
	for _, obj := range objects {
		key := discovery.Key{Kind: obj.GetKind(), Namespace: obj.GetNamespace(), Name: obj.GetName()}
		gvk := obj.GroupVersionKind()
		switch {
		case gvk.Kind == "Namespace" && gvk.Group == "":
			obj.SetNamespace("")
			key.Namespace = ""
			ns := &corev1.Namespace{}
			if err := convert(obj, ns); err != nil {
				return err
			}
			in.Namespaces = replaced(in.Namespaces, ns)
		case gvk.Kind == "Service" && gvk.Group == "":
			svc := &corev1.Service{}
			if err := convert(obj, svc); err != nil {
				return err
			}
			in.Services = replaced(in.Services, svc)
		case strings.HasSuffix(gvk.Group, ".istio.io"):
			addPolicy(in, obj.Unstructured)
		default:
			pod, err := podOf(obj)
			if err != nil {
				return err
			}
			if pod == nil {
				continue
			}
			key.Kind = "Pod"
			in.Pods = replaced(in.Pods, pod)
		}
		in.Files[key] = obj.file
	}
	for _, pod := range in.Pods {
		if in.Files[discovery.Key{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name}] != "" {
			becomes(in, pod)
		}
	}
	return nil
}

func replaced[T client.Object](all []T, obj T) []T {
	i := slices.IndexFunc(all, func(o T) bool { return o.GetNamespace() == obj.GetNamespace() && o.GetName() == obj.GetName() })
	if i < 0 {
		return append(all, obj)
	}
	all[i] = obj
	return all
}

func convert(obj fileObject, into any) error {
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(obj.Object, into); err != nil {
		return fmt.Errorf("%s: %s %s/%s: %w", obj.file, obj.GetKind(), obj.GetNamespace(), obj.GetName(), err)
	}
	return nil
}

// podOf is a pod as an object would make it, nil if it makes none.
func podOf(obj fileObject) (*corev1.Pod, error) {
	var template corev1.PodTemplateSpec
	of := func(into client.Object, found func() corev1.PodTemplateSpec) error {
		err := convert(obj, into)
		template = found()
		return err
	}
	var err error
	switch obj.GetKind() {
	case "Pod":
		pod := &corev1.Pod{}
		return pod, convert(obj, pod)
	case "Deployment":
		o := &appsv1.Deployment{}
		err = of(o, func() corev1.PodTemplateSpec { return o.Spec.Template })
	case "StatefulSet":
		o := &appsv1.StatefulSet{}
		err = of(o, func() corev1.PodTemplateSpec { return o.Spec.Template })
	case "DaemonSet":
		o := &appsv1.DaemonSet{}
		err = of(o, func() corev1.PodTemplateSpec { return o.Spec.Template })
	case "Job":
		o := &batchv1.Job{}
		err = of(o, func() corev1.PodTemplateSpec { return o.Spec.Template })
	case "CronJob":
		o := &batchv1.CronJob{}
		err = of(o, func() corev1.PodTemplateSpec { return o.Spec.JobTemplate.Spec.Template })
	default:
		return nil, nil //nolint:nilnil // no pod is a value
	}
	if err != nil {
		return nil, err
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: obj.GetNamespace(), Name: obj.GetName(), Labels: template.Labels, Annotations: template.Annotations}, Spec: template.Spec,
	}, nil
}

// becomes gives a pod of a file the label that it would have once it runs. Of a
// namespace that isn't known it is taken to be in the mesh.
func becomes(in *analysis.Input, pod *corev1.Pod) {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: pod.Namespace, Labels: map[string]string{inject.NamespaceLabel: "enabled"}}}
	if i := slices.IndexFunc(in.Namespaces, func(n *corev1.Namespace) bool { return n.Name == pod.Namespace }); i >= 0 {
		ns = in.Namespaces[i]
	}
	if pod.Spec.ServiceAccountName == "" {
		pod.Spec.ServiceAccountName = "default"
	}
	if inject.Decide(pod, ns, ns.Name, &in.Settings).Inject {
		labels := map[string]string{"security.istio.io/tlsMode": "istio"}
		maps.Copy(labels, pod.Labels)
		pod.Labels = labels
	}
}
