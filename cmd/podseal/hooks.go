package main

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// hooks are the service ports that the API server calls: webhooks of admission,
// conversion of custom resources, and aggregated APIs, as "<service>.<namespace>:<port>".
// What may not be listed is said, and left out.
func (l *looker) hooks(ctx context.Context) map[string]bool {
	out := map[string]bool{}
	add := func(namespace, name string, port *int32) {
		number := int32(443)
		if port != nil {
			number = *port
		}
		out[fmt.Sprintf("%s.%s:%d", name, namespace, number)] = true
	}
	service := func(c admissionv1.WebhookClientConfig) {
		if s := c.Service; s != nil {
			add(s.Namespace, s.Name, s.Port)
		}
	}
	var mutating admissionv1.MutatingWebhookConfigurationList
	var validating admissionv1.ValidatingWebhookConfigurationList
	for list, what := range map[client.ObjectList]string{&mutating: "mutating webhooks", &validating: "validating webhooks"} {
		if err := l.client.List(ctx, list); err != nil {
			l.note(fmt.Sprintf("%s can't be listed, so what the API server calls may not be recognised: %v", what, err))
		}
	}
	for i := range mutating.Items {
		for j := range mutating.Items[i].Webhooks {
			service(mutating.Items[i].Webhooks[j].ClientConfig)
		}
	}
	for i := range validating.Items {
		for j := range validating.Items[i].Webhooks {
			service(validating.Items[i].Webhooks[j].ClientConfig)
		}
	}
	for _, kind := range []struct {
		gvk  schema.GroupVersionKind
		path []string
	}{
		{schema.GroupVersionKind{Group: "apiregistration.k8s.io", Version: "v1", Kind: "APIServiceList"}, []string{"spec", "service"}},
		{schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinitionList"}, []string{"spec", "conversion", "webhook", "clientConfig", "service"}},
	} {
		list := &unstructured.UnstructuredList{}
		list.SetGroupVersionKind(kind.gvk)
		if err := l.client.List(ctx, list); err != nil {
			l.note(fmt.Sprintf("%s can't be listed, so what the API server calls may not be recognised: %v", kind.gvk.Kind, err))
			continue
		}
		for i := range list.Items {
			s, found, err := unstructured.NestedMap(list.Items[i].Object, kind.path...)
			if err != nil || !found {
				continue
			}
			name, _ := s["name"].(string)
			namespace, _ := s["namespace"].(string)
			var port *int32
			if n, ok := s["port"].(int64); ok {
				port = new(int32(n))
			}
			if name != "" {
				add(namespace, name, port)
			}
		}
	}
	return out
}

// distinct sorts names, each once.
func distinct(names []string) []string {
	slices.Sort(names)
	return slices.Compact(names)
}

// completeNamespaces completes one argument that names a namespace.
func completeNamespaces(k *kube) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completeTimeout)
		defer cancel()
		c, _, err := k.client(io.Discard)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var list corev1.NamespaceList
		if c.List(ctx, &list) != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		names := make([]string, 0, len(list.Items))
		for i := range list.Items {
			names = append(names, list.Items[i].Name)
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
