// Package inject adds the proxy to a pod.
//
// Pod is one pure function from a pod as its creator wrote it, its namespace
// and the settings to the pod as it shall run: the init container istio-init,
// which moves the pod's TCP into the proxy, the container istio-proxy, their
// volumes, labels and annotations, and probes that work under STRICT. The
// names of all these are Istio's, because users' tooling knows them.
//
// Order of the init containers:
//
//	native   istio-init, istio-proxy (restartPolicy Always), then the user's: they run inside the mesh (contract 5.42)
//	classic  the user's, then istio-init: they run outside of it (contract 5.43)
//
// With the CNI plugin, which captures a pod before any container of it runs, there is
// no istio-init, and the proxy itself proves that the pod is captured before it is
// ready. The application of a classic sidecar doesn't wait for that, so there
// istio-validation comes first and proves it.
//
// A container istio-proxy that the pod brings customizes the proxy (contract 5.8).
//
// Annotations are part of the API. A value that is wrong refuses the pod; all
// faults come at once. An annotation of Istio's registry that has no effect
// here gives a warning by its name, never silence.
package inject

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"istio.io/api/annotation"
	"istio.io/api/label"
	corev1 "k8s.io/api/core/v1"

	"podseal.io/podseal/internal/settings"
)

// Names of what is added to a pod.
const (
	ProxyContainer      = "istio-proxy"
	InitContainer       = "istio-init"
	ValidationContainer = "istio-validation"
)

// Ports of the proxy (contract 5.35).
const (
	outboundPort = 15001
	inboundPort  = 15006
	statsPort    = 15020 // probes and metrics
	healthPort   = 15021
	envoyPort    = 15090 // metrics under the name that scrape configurations know
)

// Params is what injection must know of this installation.
type Params struct {
	// ProxyImage is the image of both containers.
	ProxyImage string
	// ImagePullPolicy "" leaves the choice to Kubernetes.
	ImagePullPolicy corev1.PullPolicy
	// ImagePullSecrets are added to those of the pod.
	ImagePullSecrets []string
	// CAAddress is host:port of the CA; DiscoveryAddress of the control plane,
	// "" if it is the same.
	CAAddress        string
	DiscoveryAddress string
	// ClusterDomain "" means that of the settings.
	ClusterDomain string
	// NativeSidecars is used where no annotation says otherwise. It needs
	// kubelets that know sidecars (contract 5.41).
	NativeSidecars bool
	// Revision "" means default.
	Revision string
}

// Request is one pod that is about to be created.
type Request struct {
	Pod *corev1.Pod
	// Namespace is the pod's, for its labels.
	Namespace *corev1.Namespace
	// NamespaceName is the namespace of the admission request: a pod that a
	// controller creates has none in its metadata (contract 5.10).
	NamespaceName string
	Settings      settings.Settings
	Params        Params

	// owner is what the pod is an instance of where its metadata doesn't say so.
	owner *workload
}

// Pod returns the pod of the request with the proxy in it, or nil if it gets
// none. The warnings are for whoever creates the pod. An error refuses the pod;
// it joins all that is wrong, one fault per line. The request isn't changed and
// the result shares nothing with it.
func Pod(req Request) (*corev1.Pod, []string, error) {
	if req.Pod == nil || req.Namespace == nil {
		return nil, nil, errors.New("inject proxy: the pod or its namespace is not known")
	}
	if req.NamespaceName == "" {
		req.NamespaceName = req.Namespace.Name
	}
	req.Params = withDefaults(req.Params, req.Settings)
	decision := Decide(req.Pod, req.Namespace, req.NamespaceName, &req.Settings)
	if !decision.Inject {
		return nil, decision.Warnings, nil
	}
	var custom overrides
	req.Pod, custom = takeCustom(req.Pod)
	o := readOptions(req)
	in := &injection{Request: req, custom: custom, options: o, pod: req.Pod.DeepCopy(), workload: req.workload()}
	in.refuseNames()
	in.refuseCustom()
	in.refusePodSecurity()
	in.probers()
	in.mergeAppMetrics()
	if len(in.faults) > 0 {
		return nil, nil, errors.Join(in.faults...)
	}
	in.containers()
	in.volumes()
	in.labels()
	if err := in.annotations(); err != nil {
		return nil, nil, err
	}
	in.warnBypass()
	in.warnTraps()
	return in.pod, slices.Concat(decision.Warnings, in.warnings), nil
}

func withDefaults(p Params, s settings.Settings) Params {
	if p.Revision == "" {
		p.Revision = settings.DefaultRevision
	}
	if p.ClusterDomain == "" {
		p.ClusterDomain = s.ClusterDomain
	}
	if p.DiscoveryAddress == "" {
		p.DiscoveryAddress = p.CAAddress
	}
	return p
}

// injection is one pod on its way. pod is the copy that is being changed.
type injection struct {
	Request
	options
	pod      *corev1.Pod
	workload workload
	custom   overrides

	appProbe   string // ISTIO_KUBE_APP_PROBERS, "" if there are none
	appMetrics string // ISTIO_PROMETHEUS_ANNOTATIONS, "" if there are none
}

// refuseNames refuses pods that bring what injection adds: two of a name is a
// pod that the API server refuses with less to go by.
func (in *injection) refuseNames() {
	for _, c := range slices.Concat(in.pod.Spec.InitContainers, in.pod.Spec.Containers) {
		if c.Name == InitContainer || c.Name == ValidationContainer {
			in.fault("container %q: the pod brings a container of this name itself, and it can't be customized; remove it, annotations such as %s say what is captured",
				c.Name, annotation.SidecarTrafficExcludeOutboundPorts.Name)
		}
	}
	ours := volumes()
	for _, v := range in.pod.Spec.Volumes {
		if slices.ContainsFunc(ours, func(o corev1.Volume) bool { return o.Name == v.Name }) {
			in.fault("volume %q: the name is that of a volume of the proxy; rename it", v.Name)
		}
	}
}

// podSecurityLabel is Kubernetes' own; deckhousePolicyLabel is the one that
// users of Deckhouse write.
const (
	podSecurityLabel     = "pod-security.kubernetes.io/enforce"
	deckhousePolicyLabel = "security.deckhouse.io/pod-policy"
)

// refusePodSecurity says beforehand, and clearly, what Pod Security would say
// of the pod with istio-init in it.
func (in *injection) refusePodSecurity() {
	level := in.Namespace.Labels[podSecurityLabel]
	if !in.byInit() || (level != "baseline" && level != "restricted") {
		return
	}
	in.fault("namespace %q enforces the Pod Security Standard %q (label %s), which forbids the capability NET_ADMIN, and init container %q needs it to capture the pod's traffic; "+
		"let the CNI plugin capture instead, which needs nothing in the pod (ModuleConfig istio: dataPlane.trafficRedirectionSetupMode: CNIPlugin), "+
		"label the namespace %s=privileged (or %s=privileged), or leave the pod out of the mesh with its label %s=false",
		in.NamespaceName, level, podSecurityLabel, InitContainer, deckhousePolicyLabel, podSecurityLabel, label.SidecarInject.Name)
}

// containers puts the two containers in their places (contract 5.42, 5.43).
func (in *injection) containers() {
	spec := &in.pod.Spec
	var first, last []corev1.Container
	switch {
	case in.byInit():
		first = append(first, in.initContainer())
	case in.byPlugin() && !in.native:
		spec.InitContainers = slices.Insert(spec.InitContainers, 0, in.validationContainer())
	}
	proxy := in.proxyContainer()
	in.customize(&proxy)
	in.startupProbe(&proxy)
	switch {
	case in.native:
		first = append(first, proxy)
	case in.hold:
		first, last = nil, first
		spec.Containers = slices.Insert(spec.Containers, 0, proxy)
	default:
		first, last = nil, first
		spec.Containers = append(spec.Containers, proxy)
	}
	spec.InitContainers = slices.Concat(first, spec.InitContainers, last)
}

// volumes puts the proxy's before the pod's: the API server adds one of its own at the
// end, for a pod of podseal inject after the proxy's are there, for one of the webhook
// before.
func (in *injection) volumes() {
	in.pod.Spec.Volumes = slices.Concat(volumes(), in.user.volumes, in.pod.Spec.Volumes)
	for _, name := range in.Params.ImagePullSecrets {
		ref := corev1.LocalObjectReference{Name: name}
		if !slices.Contains(in.pod.Spec.ImagePullSecrets, ref) {
			in.pod.Spec.ImagePullSecrets = append(in.pod.Spec.ImagePullSecrets, ref)
		}
	}
}

// labels sets what other proxies and the telemetry go by; what the user has
// set stays (contract 5.11).
func (in *injection) labels() {
	if in.pod.Labels == nil {
		in.pod.Labels = map[string]string{}
	}
	l := in.pod.Labels
	mode := "istio"
	if !in.capture {
		mode = "disabled" // nothing in the pod would answer mutual TLS
	}
	for name, value := range map[string]string{
		label.SecurityTlsMode.Name:          mode,
		label.ServiceCanonicalName.Name:     in.workload.canonicalName(l),
		label.ServiceCanonicalRevision.Name: canonicalRevision(l),
	} {
		if _, set := l[name]; !set {
			l[name] = value
		}
	}
}

// status is the annotation sidecar.istio.io/status (contract 5.12).
type status struct {
	InitContainers   []string `json:"initContainers"`
	Containers       []string `json:"containers"`
	Volumes          []string `json:"volumes"`
	ImagePullSecrets []string `json:"imagePullSecrets"`
	Revision         string   `json:"revision"`
}

func (in *injection) annotations() error {
	if in.pod.Annotations == nil {
		in.pod.Annotations = map[string]string{}
	}
	a := in.pod.Annotations
	st := status{ImagePullSecrets: in.Params.ImagePullSecrets, Revision: in.Params.Revision}
	switch {
	case in.byInit():
		st.InitContainers = append(st.InitContainers, InitContainer)
	case in.byPlugin():
		in.tellPlugin(a)
		if !in.native {
			st.InitContainers = append(st.InitContainers, ValidationContainer)
		}
	}
	if in.native {
		st.InitContainers = append(st.InitContainers, ProxyContainer)
	} else {
		st.Containers = append(st.Containers, ProxyContainer)
	}
	for _, v := range volumes() {
		st.Volumes = append(st.Volumes, v.Name)
	}
	b, err := json.Marshal(st)
	if err != nil {
		return fmt.Errorf("write annotation %s: %w", annotation.SidecarStatus.Name, err)
	}
	a[annotation.SidecarStatus.Name] = string(b)
	a[annotation.IoIstioRev.Name] = in.Params.Revision
	if len(in.Pod.Spec.Containers) > 0 {
		for _, name := range []string{"kubectl.kubernetes.io/default-container", "kubectl.kubernetes.io/default-logs-container"} {
			if _, set := a[name]; !set {
				a[name] = in.Pod.Spec.Containers[0].Name
			}
		}
	}
	if err := in.noteCustom(); err != nil {
		return fmt.Errorf("write annotation %s: %w", annotation.ProxyOverrides.Name, err)
	}
	if in.mergeMetrics {
		a[scrapeAnnotation], a[portAnnotation], a[pathAnnotation] = "true", fmt.Sprint(statsPort), "/stats/prometheus"
	}
	return nil
}

// Annotations that lead Prometheus to a pod.
const (
	scrapeAnnotation = "prometheus.io/scrape"
	portAnnotation   = "prometheus.io/port"
	pathAnnotation   = "prometheus.io/path"
)

// mergeAppMetrics leads Prometheus to the proxy, and tells the proxy where the
// metrics of the application are, which it then serves with its own (contract
// 5.12, 5.49). A pod that doesn't want to be scraped isn't.
func (in *injection) mergeAppMetrics() {
	said := in.Pod.Annotations
	if !in.mergeMetrics || said[scrapeAnnotation] == "false" {
		in.mergeMetrics = false
		return
	}
	port := said[portAnnotation]
	if said[scrapeAnnotation] != "true" || port == fmt.Sprint(statsPort) {
		return
	}
	if port != "" && !isPort(port) {
		in.fault("annotation %s: %q: write a port from 1 to 65535", portAnnotation, port)
		return
	}
	b, err := json.Marshal(map[string]string{"scrape": "true", "port": port, "path": said[pathAnnotation]})
	if err != nil {
		in.fault("annotation %s: %v", pathAnnotation, err)
		return
	}
	in.appMetrics = literal(string(b))
}

// literal escapes text in the value of an environment variable, in which the
// kubelet would otherwise expand $(NAME).
func literal(s string) string { return strings.ReplaceAll(s, "$", "$$") }

// reservedPorts are those on which the proxy listens (contract 5.35, 5.36).
func reservedPorts() []int32 {
	return []int32{15000, outboundPort, 15004, inboundPort, 15008, statsPort, healthPort, 15053, envoyPort}
}

// warnBypass names what would get past the proxy or collide with it.
func (in *injection) warnBypass() {
	for _, c := range slices.Concat(in.Pod.Spec.InitContainers, in.Pod.Spec.Containers) {
		user, group := identityOf(in.Pod.Spec.SecurityContext, c.SecurityContext)
		if user == settings.ProxyUID || group == settings.ProxyUID {
			in.warn("container %q runs as user or group %d, which is the proxy's: its outbound traffic bypasses the proxy and is not encrypted; use another", c.Name, settings.ProxyUID)
		}
		for _, p := range c.Ports {
			if slices.Contains(reservedPorts(), p.ContainerPort) {
				in.warn("container %q: port %d is reserved by the proxy; the container can't listen there or policies don't apply to it", c.Name, p.ContainerPort)
			}
		}
	}
}

// identityOf returns the user and group that a container asks for, -1 for
// none.
func identityOf(pod *corev1.PodSecurityContext, container *corev1.SecurityContext) (user, group int64) {
	user, group = -1, -1
	if pod != nil && pod.RunAsUser != nil {
		user = *pod.RunAsUser
	}
	if pod != nil && pod.RunAsGroup != nil {
		group = *pod.RunAsGroup
	}
	if container != nil && container.RunAsUser != nil {
		user = *container.RunAsUser
	}
	if container != nil && container.RunAsGroup != nil {
		group = *container.RunAsGroup
	}
	return user, group
}
