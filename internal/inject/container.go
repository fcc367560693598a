package inject

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"

	"podseal.io/podseal/internal/settings"
)

const (
	program = "podseal-proxy" // the program of the proxy image, on its PATH

	// nativeWait is how long the kubelet waits for a native sidecar before it restarts
	// it. It shows no logs and deletes no pod while the hook runs, so that must be
	// short; the backoff of restarts does the rest of the waiting.
	nativeWait = "10s"
	readyPath  = "/healthz/ready"

	tokenLifetime = 43200 // seconds (contract 4.18)
)

// initContainer moves the pod's TCP into the proxy (contract 5.13). It needs
// NET_ADMIN in the pod's own network namespace and nothing else.
func (in *injection) initContainer() corev1.Container {
	root := int64(0)
	security := restricted(root)
	security.RunAsNonRoot = new(bool)
	security.Capabilities.Add = []corev1.Capability{"NET_ADMIN"}
	c := corev1.Container{
		Name:            InitContainer,
		Image:           in.image,
		ImagePullPolicy: in.Params.ImagePullPolicy,
		Args:            in.captureArgs(),
		Resources:       *in.resources.DeepCopy(),
		SecurityContext: security,
	}
	if v, set := in.metadata[loopbackEnv]; set {
		c.Env = []corev1.EnvVar{{Name: loopbackEnv, Value: v}}
	}
	return c
}

// captureArgs are the arguments of contract 5.13: numbers first, then what the
// annotations change.
func (in *injection) captureArgs() []string {
	excludeInbound := []string{fmt.Sprint(envoyPort), fmt.Sprint(healthPort), fmt.Sprint(statsPort)}
	for _, port := range in.traffic.excludeInboundPorts {
		if !slices.Contains(excludeInbound, port) {
			excludeInbound = append(excludeInbound, port)
		}
	}
	args := []string{
		"capture",
		"-p", fmt.Sprint(outboundPort), "-z", fmt.Sprint(inboundPort), "-u", fmt.Sprint(settings.ProxyUID), "-m", "REDIRECT",
		"-i", strings.Join(in.traffic.includeRanges, ","), "-x", strings.Join(in.traffic.excludeRanges, ","),
		"-b", strings.Join(in.traffic.includeInboundPorts, ","), "-d", strings.Join(excludeInbound, ","),
	}
	for _, o := range []struct {
		flag   string
		values []string
	}{
		{"-q", in.traffic.includeOutboundPorts},
		{"-o", in.traffic.excludeOutboundPorts},
		{"-k", in.traffic.rerouteInterfaces},
		{"-c", in.traffic.excludeInterfaces},
	} {
		if len(o.values) > 0 {
			args = append(args, o.flag, strings.Join(o.values, ","))
		}
	}
	return args
}

// proxyContainer is the proxy itself (contract 5.15).
func (in *injection) proxyContainer() corev1.Container {
	args := []string{"proxy", "sidecar", "--domain", "$(POD_NAMESPACE).svc." + in.Params.ClusterDomain}
	if in.logLevel != "" {
		args = append(args, "--proxyLogLevel="+in.logLevel)
	}
	if in.byPlugin() {
		args = append(args, "--require-capture")
	}
	c := corev1.Container{
		Name:            ProxyContainer,
		Image:           in.image,
		ImagePullPolicy: in.Params.ImagePullPolicy,
		Args:            args,
		Ports:           []corev1.ContainerPort{{Name: "http-envoy-prom", ContainerPort: envoyPort, Protocol: corev1.ProtocolTCP}},
		Env:             in.env(),
		Resources:       *in.resources.DeepCopy(),
		SecurityContext: restricted(settings.ProxyUID),
		VolumeMounts:    append(mounts(), in.user.mounts...),
	}
	if in.probed {
		c.ReadinessProbe = &corev1.Probe{
			ProbeHandler: asksReady(), TimeoutSeconds: 3,
			InitialDelaySeconds: in.readiness.initialDelay, PeriodSeconds: in.readiness.period, FailureThreshold: in.readiness.failures,
		}
	}
	if in.native {
		always := corev1.ContainerRestartPolicyAlways
		c.RestartPolicy = &always
		c.Lifecycle = &corev1.Lifecycle{PreStop: command("drain")}
	}
	if in.hold || in.native && in.probed {
		if c.Lifecycle == nil {
			c.Lifecycle = &corev1.Lifecycle{}
		}
		c.Lifecycle.PostStart = in.waitHook()
	}
	return c
}

func asksReady() corev1.ProbeHandler {
	return corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: readyPath, Port: intstr.FromInt32(healthPort)}}
}

// startupProbe adds the startup probe where no postStart hook waits for the proxy
// (contract 5.19). The kubelet looks at a pod once a second and goes on only after
// a look, and a probe that has succeeded takes one more than a hook that has returned.
func (in *injection) startupProbe(proxy *corev1.Container) {
	if !in.probed || proxy.StartupProbe != nil {
		return
	}
	if l := proxy.Lifecycle; l != nil && equality.Semantic.DeepEqual(l.PostStart, in.waitHook()) {
		return
	}
	proxy.StartupProbe = &corev1.Probe{ProbeHandler: asksReady(), PeriodSeconds: 1, TimeoutSeconds: 3, FailureThreshold: 600}
}

// restricted is a security context that Pod Security "restricted" lets pass,
// apart from a uid of 0.
func restricted(uid int64) *corev1.SecurityContext {
	yes, never, gid := true, false, uid
	return &corev1.SecurityContext{
		AllowPrivilegeEscalation: &never,
		Privileged:               new(bool),
		ReadOnlyRootFilesystem:   &yes,
		RunAsNonRoot:             &yes,
		RunAsUser:                &uid,
		RunAsGroup:               &gid,
		Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
}

// env is the environment of the proxy (contract 5.16), then what proxyMetadata
// adds or replaces.
func (in *injection) env() []corev1.EnvVar {
	env := []corev1.EnvVar{
		{Name: "PILOT_CERT_PROVIDER", Value: "istiod"},
		{Name: "CA_ADDR", Value: in.Params.CAAddress},
		fieldEnv("POD_NAME", "metadata.name"),
		fieldEnv("POD_NAMESPACE", "metadata.namespace"),
		fieldEnv("INSTANCE_IP", "status.podIP"),
		fieldEnv("INSTANCE_IPS", "status.podIPs"),
		fieldEnv("SERVICE_ACCOUNT", "spec.serviceAccountName"),
		fieldEnv("HOST_IP", "status.hostIP"),
		limitEnv("ISTIO_CPU_LIMIT", "limits.cpu"),
		{Name: "PROXY_CONFIG", Value: in.proxyConfigJSON()},
		{Name: "ISTIO_META_POD_PORTS", Value: podPorts(in.Pod)},
		{Name: "ISTIO_META_APP_CONTAINERS", Value: strings.Join(containerNames(in.Pod.Spec.Containers), ",")},
		limitEnv("GOMEMLIMIT", "limits.memory"),
		{Name: "ISTIO_META_CLUSTER_ID", Value: "Kubernetes"},
		fieldEnv("ISTIO_META_NODE_NAME", "spec.nodeName"),
		{Name: "ISTIO_META_INTERCEPTION_MODE", Value: in.interception},
		{Name: "ISTIO_META_WORKLOAD_NAME", Value: in.workload.name},
		{Name: "ISTIO_META_OWNER", Value: in.workload.reference(in.NamespaceName)},
		{Name: "ISTIO_META_MESH_ID", Value: in.Settings.TrustDomain},
		{Name: "TRUST_DOMAIN", Value: in.Settings.TrustDomain},
	}
	if in.appProbe != "" {
		env = append(env, corev1.EnvVar{Name: "ISTIO_KUBE_APP_PROBERS", Value: in.appProbe})
	}
	if in.appMetrics != "" {
		env = append(env, corev1.EnvVar{Name: "ISTIO_PROMETHEUS_ANNOTATIONS", Value: in.appMetrics})
	}
	if in.drain != nil {
		env = append(env, corev1.EnvVar{Name: "TERMINATION_DRAIN_DURATION", Value: in.drain.String()})
	}
	if in.concurrency > 0 {
		env = append(env, corev1.EnvVar{Name: "GOMAXPROCS", Value: fmt.Sprint(in.concurrency)})
	}
	for _, name := range slices.Sorted(maps.Keys(in.metadata)) {
		v := corev1.EnvVar{Name: name, Value: in.metadata[name]}
		if i := slices.IndexFunc(env, func(e corev1.EnvVar) bool { return e.Name == name }); i >= 0 {
			env[i] = v
		} else {
			env = append(env, v)
		}
	}
	return env
}

func fieldEnv(name, path string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}}
}

func limitEnv(name, path string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: path, Divisor: resource.MustParse("0")}}}
}

func containerNames(list []corev1.Container) []string {
	names := make([]string, len(list))
	for i, c := range list {
		names[i] = c.Name
	}
	return names
}

// podPorts is the JSON list of the ports that the pod's containers declare.
func podPorts(pod *corev1.Pod) string {
	ports := []corev1.ContainerPort{}
	for _, c := range pod.Spec.Containers {
		for _, port := range c.Ports {
			port.Protocol = cmp.Or(port.Protocol, corev1.ProtocolTCP) // as the API server does, before a webhook sees it
			ports = append(ports, port)
		}
	}
	b, err := json.Marshal(ports)
	if err != nil {
		return "[]" // can't be: the type has no way to fail
	}
	return string(b)
}

// mounts are where the proxy has its volumes (contract 5.17).
func mounts() []corev1.VolumeMount {
	return []corev1.VolumeMount{
		{Name: "istiod-ca-cert", MountPath: "/var/run/secrets/istio", ReadOnly: true},
		{Name: "istio-token", MountPath: "/var/run/secrets/tokens", ReadOnly: true},
		{Name: "istio-data", MountPath: "/var/lib/istio/data"},
		{Name: "istio-envoy", MountPath: "/etc/istio/proxy"},
		{Name: "istio-podinfo", MountPath: "/etc/istio/pod", ReadOnly: true},
	}
}

// volumes are those of contract 5.17 that the proxy uses. It owns nothing in
// them by group: the token is readable since the containers of the pod run as
// different users, so the pod's fsGroup, which would change the owner of the
// user's own volumes, is left alone.
func volumes() []corev1.Volume {
	expires := int64(tokenLifetime)
	field := func(path, from string) corev1.DownwardAPIVolumeFile {
		return corev1.DownwardAPIVolumeFile{Path: path, FieldRef: &corev1.ObjectFieldSelector{FieldPath: from}}
	}
	return []corev1.Volume{
		{Name: "istio-envoy", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}},
		{Name: "istio-data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		{Name: "istio-podinfo", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{
			Items: []corev1.DownwardAPIVolumeFile{field("labels", "metadata.labels"), field("annotations", "metadata.annotations")},
		}}},
		{Name: "istio-token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
			Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
				Audience: settings.TokenAudience, ExpirationSeconds: &expires, Path: "istio-token",
			}}},
		}}},
		{Name: "istiod-ca-cert", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: settings.RootConfigMap},
		}}},
	}
}

// command is a hook that runs the proxy's program.
func command(args ...string) *corev1.LifecycleHandler {
	return &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: append([]string{program}, args...)}}
}

// waitHook returns when the proxy is ready. After a classic sidecar's has failed the
// kubelet starts the application all the same, so that one is patient.
func (in *injection) waitHook() *corev1.LifecycleHandler {
	if in.native {
		return command("wait", "-timeout", nativeWait)
	}
	return command("wait")
}
