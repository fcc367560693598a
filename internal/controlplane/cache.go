package controlplane

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"
	"unique"

	"istio.io/api/annotation"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	clientdiscovery "k8s.io/client-go/discovery"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"podseal.io/podseal/internal/discovery"
	"podseal.io/podseal/internal/inject"
	"podseal.io/podseal/internal/settings"
)

// Names of the webhook configurations that the chart brings.
const (
	injectorConfig  = "istio-sidecar-injector"
	validatorConfig = "istio-validator-d8-istio"
)

// policyKinds are the kinds of objects that discovery reads as they are, and
// whose status is written.
func policyKinds() []schema.GroupVersionKind {
	return []schema.GroupVersionKind{
		{Group: "security.istio.io", Version: "v1", Kind: discovery.KindPeerAuthentication},
		{Group: "security.istio.io", Version: "v1", Kind: discovery.KindAuthorizationPolicy},
		{Group: "security.istio.io", Version: "v1", Kind: discovery.KindRequestAuthentication},
		{Group: "networking.istio.io", Version: "v1", Kind: discovery.KindDestinationRule},
		{Group: "networking.istio.io", Version: "v1", Kind: discovery.KindServiceEntry},
	}
}

// Honoured reports whether objects of a kind, in any version, are policies that
// the mesh reads.
func Honoured(of schema.GroupVersionKind) bool {
	return slices.ContainsFunc(policyKinds(), func(gvk schema.GroupVersionKind) bool { return gvk.GroupKind() == of.GroupKind() })
}

// newPolicy is an empty object of one of policyKinds, nil for any other kind.
func newPolicy(kind string) *unstructured.Unstructured {
	for _, gvk := range policyKinds() {
		if gvk.Kind == kind {
			u := &unstructured.Unstructured{}
			u.SetGroupVersionKind(gvk)
			return u
		}
	}
	return nil
}

// newScheme knows only what this process reads and writes.
func newScheme() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, discoveryv1.AddToScheme, admissionv1.AddToScheme,
		appsv1.AddToScheme, policyv1.AddToScheme, authenticationv1.AddToScheme, authorizationv1.AddToScheme, coordinationv1.AddToScheme, eventsv1.AddToScheme,
	} {
		utilruntime.Must(add(s))
	}
	return s
}

// cacheOptions narrow what is watched and kept to what is used.
func cacheOptions(namespace string) cache.Options {
	named := func(name string) fields.Selector { return fields.OneTermEqualSelector("metadata.name", name) }
	return cache.Options{
		DefaultTransform: cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Pod{}:                                 {Transform: trimPod},
			&corev1.Node{}:                                {Transform: trimNode},
			&corev1.Namespace{}:                           {Transform: trimNamespace},
			&corev1.Secret{}:                              {Namespaces: map[string]cache.Config{namespace: {}}},
			&corev1.ConfigMap{}:                           {Field: named(settings.RootConfigMap)},
			&discoveryv1.EndpointSlice{}:                  {},
			&admissionv1.MutatingWebhookConfiguration{}:   {Field: named(injectorConfig)},
			&admissionv1.ValidatingWebhookConfiguration{}: {Field: named(validatorConfig)},
		},
	}
}

// trimPod keeps what discovery reads: of the annotations, those that say which
// ports are captured (contract 1.27).
func trimPod(obj any) (any, error) {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return obj, nil // a tombstone
	}
	return &corev1.Pod{
		TypeMeta: pod.TypeMeta,
		ObjectMeta: metav1.ObjectMeta{
			Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion, Labels: pod.Labels, Annotations: trimAnnotations(pod.Annotations),
			CreationTimestamp: pod.CreationTimestamp, DeletionTimestamp: pod.DeletionTimestamp, OwnerReferences: pod.OwnerReferences,
		},
		Spec: corev1.PodSpec{
			ServiceAccountName: pod.Spec.ServiceAccountName, NodeName: pod.Spec.NodeName, HostNetwork: pod.Spec.HostNetwork,
			Containers: trimContainers(pod.Spec.Containers), InitContainers: trimContainers(pod.Spec.InitContainers),
		},
		Status: corev1.PodStatus{
			Phase: pod.Status.Phase, PodIP: pod.Status.PodIP, PodIPs: pod.Status.PodIPs, Conditions: trimConditions(pod.Status.Conditions),
			InitContainerStatuses: trimStatuses(pod.Status.InitContainerStatuses), ContainerStatuses: trimStatuses(pod.Status.ContainerStatuses),
		},
	}, nil
}

// trimConditions keeps whether a pod is ready: those that ServiceEntries select have
// no EndpointSlice that says so.
func trimConditions(all []corev1.PodCondition) []corev1.PodCondition {
	for _, c := range all {
		if c.Type == corev1.PodReady {
			return []corev1.PodCondition{{Type: c.Type, Status: c.Status}}
		}
	}
	return nil
}

// trimStatuses keeps what says that a pod is held (see repair.go).
func trimStatuses(all []corev1.ContainerStatus) []corev1.ContainerStatus {
	for i := range all {
		if uncaptured(&all[i]) {
			return []corev1.ContainerStatus{{Name: all[i].Name, State: all[i].State, LastTerminationState: all[i].LastTerminationState}}
		}
	}
	return nil
}

// trimNode keeps what says which addresses are a node's.
func trimNode(obj any) (any, error) {
	node, ok := obj.(*corev1.Node)
	if !ok {
		return obj, nil // a tombstone
	}
	return &corev1.Node{
		TypeMeta:   node.TypeMeta,
		ObjectMeta: metav1.ObjectMeta{Name: node.Name, UID: node.UID, ResourceVersion: node.ResourceVersion},
		Spec:       corev1.NodeSpec{PodCIDRs: node.Spec.PodCIDRs},
		Status:     corev1.NodeStatus{Addresses: node.Status.Addresses},
	}, nil
}

func trimAnnotations(all map[string]string) map[string]string {
	var kept map[string]string
	for _, name := range []string{annotation.SidecarTrafficIncludeInboundPorts.Name, annotation.SidecarTrafficExcludeInboundPorts.Name} {
		if value, ok := all[name]; ok {
			if kept == nil {
				kept = map[string]string{}
			}
			kept[name] = value
		}
	}
	return kept
}

func trimContainers(all []corev1.Container) []corev1.Container {
	kept := make([]corev1.Container, 0, len(all))
	for i := range all {
		c := &all[i]
		less := corev1.Container{Name: c.Name, Ports: c.Ports, RestartPolicy: c.RestartPolicy}
		if c.Name == inject.ProxyContainer {
			less.Image = unique.Make(c.Image).Value() // one of a few for thousands of pods
		}
		less.LivenessProbe, less.ReadinessProbe, less.StartupProbe = trimProbe(c, c.LivenessProbe), trimProbe(c, c.ReadinessProbe), trimProbe(c, c.StartupProbe)
		if less.Image != "" || len(c.Ports) > 0 || less.LivenessProbe != nil || less.ReadinessProbe != nil || less.StartupProbe != nil {
			kept = append(kept, less)
		}
	}
	return kept
}

// trimProbe keeps where a probe goes to, if that is a port of the application.
func trimProbe(c *corev1.Container, probe *corev1.Probe) *corev1.Probe {
	if probedPort(c, probe) == 0 {
		return nil
	}
	return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: probe.HTTPGet.Port}}}
}

// trimNamespace keeps of managedFields only our own: they say whether a label is
// ours to remove.
func trimNamespace(obj any) (any, error) {
	ns, ok := obj.(*corev1.Namespace)
	if !ok {
		return obj, nil // a tombstone
	}
	kept := ns.ManagedFields[:0:0]
	for _, f := range ns.ManagedFields {
		if f.Manager == string(fieldOwner) {
			kept = append(kept, f)
		}
	}
	out := *ns
	out.ManagedFields = kept
	return &out, nil
}

// apiRetry is how often an API server that isn't ready is asked again.
const apiRetry = 2 * time.Second

// waitForAPI waits until the API server answers and serves the kinds of policies,
// and says whether injected pods get native sidecars.
func waitForAPI(ctx context.Context, cfg Config) (native bool, err error) {
	d, err := clientdiscovery.NewDiscoveryClientForConfig(cfg.REST)
	if err != nil {
		return false, fmt.Errorf("control plane: %w", err)
	}
	for {
		native, err = askAPI(d)
		if err == nil {
			if cfg.NativeSidecars != nil {
				native = *cfg.NativeSidecars
			}
			return native, nil
		}
		cfg.Log.Warn("the API server is not ready for us, waiting", slog.String("error", err.Error()))
		select {
		case <-time.After(apiRetry):
		case <-ctx.Done():
			return false, fmt.Errorf("wait for the API server: %w", context.Cause(ctx))
		}
	}
}

func askAPI(d clientdiscovery.DiscoveryInterface) (native bool, err error) {
	v, err := d.ServerVersion()
	if err != nil {
		return false, fmt.Errorf("ask for the version: %w", err)
	}
	for _, gvk := range policyKinds() {
		list, err := d.ServerResourcesForGroupVersion(gvk.GroupVersion().String())
		if err != nil {
			return false, fmt.Errorf("look for the CRD of %s: %w", gvk.Kind, err)
		}
		if !slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Kind == gvk.Kind }) {
			return false, fmt.Errorf("%s has no %s: its CRD is not installed", gvk.GroupVersion(), gvk.Kind)
		}
	}
	return NativeSidecars(v.Major, v.Minor), nil
}

// NativeSidecars reports whether a server of this version has sidecar containers
// as a feature that can't be switched off (contract 5.41). A minor version may
// end in "+".
func NativeSidecars(major, minor string) bool {
	maj, errMajor := strconv.Atoi(major)
	mnr, errMinor := strconv.Atoi(strings.TrimRight(minor, "+"))
	return errMajor == nil && errMinor == nil && (maj > 1 || (maj == 1 && mnr >= 33))
}
