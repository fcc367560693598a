package inject

import (
	"encoding/json"
	"io"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"istio.io/api/annotation"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"podseal.io/podseal/internal/capture"
	"podseal.io/podseal/internal/settings"
)

func simple(annotations map[string]string) Request {
	return Request{
		Pod: &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "web", Annotations: annotations},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: "a"}}},
		},
		Namespace:     &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{NamespaceLabel: "enabled"}}},
		NamespaceName: "shop",
		Settings:      settings.Default(""),
		Params:        testParams(),
	}
}

func mustInject(t *testing.T, req Request) *corev1.Pod {
	t.Helper()
	pod, _, err := Pod(req)
	if err != nil || pod == nil {
		t.Fatal("not injected:", err)
	}
	return pod
}

func container(t *testing.T, pod *corev1.Pod, name string) corev1.Container {
	t.Helper()
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no container %s", name)
	return corev1.Container{}
}

func env(t *testing.T, c corev1.Container, name string) string {
	t.Helper()
	i := slices.IndexFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == name })
	if i < 0 {
		t.Fatalf("container %s has no %s", c.Name, name)
	}
	return c.Env[i].Value
}

// TestWrongAnnotations: each of contract 5.22 refuses the pod by name, value
// and what would be right (contract 5.9).
func TestWrongAnnotations(t *testing.T) {
	for name, values := range map[string][]string{
		"sidecar.istio.io/interceptionMode":                     {"", "redirect", "TPROXY"},
		"status.sidecar.istio.io/port":                          {"", "x", "-1", "70000"},
		"readiness.status.sidecar.istio.io/initialDelaySeconds": {"", "-1", "1.5", "99999999999"},
		"readiness.status.sidecar.istio.io/periodSeconds":       {"0", "1s"},
		"readiness.status.sidecar.istio.io/failureThreshold":    {"0", "x"},
		"traffic.sidecar.istio.io/includeOutboundIPRanges":      {"10.0.0.1", "*,10.0.0.0/8", "::ffff:10.0.0.0/104", "10.0.0.0/33"},
		"traffic.sidecar.istio.io/excludeOutboundIPRanges":      {"*", "ten"},
		"traffic.sidecar.istio.io/includeInboundPorts":          {"*,80", "0", "http", "80-90", "+80", "080"},
		"traffic.sidecar.istio.io/excludeInboundPorts":          {"*", "65536"},
		"traffic.sidecar.istio.io/includeOutboundPorts":         {"x"},
		"traffic.sidecar.istio.io/excludeOutboundPorts":         {"-1"},
		"traffic.sidecar.istio.io/excludeInterfaces":            {"a b", "sixteencharacter", ".", "..", "+"},
		"traffic.sidecar.istio.io/kubevirtInterfaces":           {"a/b"},
		"istio.io/reroute-virtual-interfaces":                   {"a\nb"},
		"prometheus.istio.io/merge-metrics":                     {"", "yes"},
		"proxy.istio.io/config":                                 {"[]", "{", "a: b", "concurrency: many", "concurrency: -1", "terminationDrainDuration: -1s", "proxyMetadata: [a]", "proxyMetadata: {INVALID_DROP: \"true\"}", "proxyMetadata: {ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR: \"::1/128\"}", "proxyMetadata: {SECRET_TTL: 1d}"},
		"sidecar.istio.io/proxyCPU":                             {"", "x", "0", "-1"},
		"sidecar.istio.io/proxyMemory":                          {"12Mb", "1e-1000000000"},
		"sidecar.istio.io/proxyCPULimit":                        {"x"},
		"sidecar.istio.io/proxyMemoryLimit":                     {"x"},
		"sidecar.istio.io/rewriteAppHTTPProbers":                {"no"},
		"sidecar.istio.io/nativeSidecar":                        {""},
		"sidecar.istio.io/logLevel":                             {"loud"},
		"sidecar.istio.io/proxyImage":                           {"", "a b"},
	} {
		for _, value := range values {
			pod, _, err := Pod(simple(map[string]string{name: value}))
			if err == nil || pod != nil {
				t.Errorf("%s: %q was accepted", name, value)
			} else if !strings.HasPrefix(err.Error(), "annotation "+name+": ") {
				t.Errorf("%s: %q: the refusal doesn't name it: %v", name, value, err)
			}
		}
	}
}

// TestKnownAnnotations: everything in Istio's registry that is for pods is
// either honoured or warned of by name, never passed over (contract 5.23).
func TestKnownAnnotations(t *testing.T) {
	for _, a := range annotation.AllResourceAnnotations() {
		if slices.Contains(honoured(), a.Name) {
			continue
		}
		_, warnings, err := Pod(simple(map[string]string{a.Name: "x"}))
		if err != nil || len(warnings) != 1 || !strings.HasPrefix(warnings[0], "annotation "+a.Name+": ") {
			t.Errorf("%s: %q, %v", a.Name, warnings, err)
		}
	}
}

// TestProxyConfigFields proves contract 5.24.
func TestProxyConfigFields(t *testing.T) {
	req := simple(map[string]string{"proxy.istio.io/config": "{concurrency: 0, drainDuration: 1s, discoveryAddress: x, tracing: {}, holdApplicationUntilProxyStarts: false, terminationDrainDuration: 90s, proxyMetadata: {}}"})
	pod, warnings, err := Pod(req)
	if err != nil {
		t.Fatal(err)
	}
	var named []string
	for _, w := range warnings {
		named = append(named, strings.Fields(w)[2])
	}
	if want := []string{"discoveryAddress", "drainDuration", "tracing"}; !slices.Equal(named, want) {
		t.Errorf("warnings %q, want one each for %q", warnings, want)
	}
	if got, want := env(t, container(t, pod, ProxyContainer), "PROXY_CONFIG"), `{"discoveryAddress":"istiod.d8-istio.svc:15012","terminationDrainDuration":"1m30s"}`; got != want {
		t.Errorf("PROXY_CONFIG %s, want %s", got, want)
	}
}

// TestProxyMetadata: environment that nothing reads is warned of by name.
func TestProxyMetadata(t *testing.T) {
	_, warnings, err := Pod(simple(map[string]string{"proxy.istio.io/config": "proxyMetadata: {COMPLIANCE_POLICY: pqc, OUTPUT_CERTS: /etc/x, SECRET_TTL: 12h, CA_ADDR: ca.x:15012, GOMAXPROCS: \"2\"}"}))
	if err != nil || len(warnings) != 2 || !strings.Contains(warnings[0], ": COMPLIANCE_POLICY has no effect") || !strings.Contains(warnings[1], ": OUTPUT_CERTS has no effect") {
		t.Errorf("%q, %v", warnings, err)
	}
}

// TestResources: contract 5.20.
func TestResources(t *testing.T) {
	for _, test := range []struct {
		annotations map[string]string
		want        string
	}{
		{nil, `{"limits":{"memory":"1Gi"},"requests":{"cpu":"100m","memory":"128Mi"}}`},
		{map[string]string{"sidecar.istio.io/proxyMemory": "10Mi"}, `{"requests":{"memory":"10Mi"}}`},
		{map[string]string{"sidecar.istio.io/proxyCPULimit": "1", "sidecar.istio.io/proxyCPU": "1"}, `{"limits":{"cpu":"1"},"requests":{"cpu":"1"}}`},
	} {
		pod := mustInject(t, simple(test.annotations))
		for _, name := range []string{ProxyContainer, InitContainer} {
			b, err := json.Marshal(container(t, pod, name).Resources)
			if err != nil || string(b) != test.want {
				t.Errorf("%v: %s of %s, want %s", test.annotations, b, name, test.want)
			}
		}
	}
}

// TestSecurity: the proxy passes Pod Security "restricted"; istio-init differs
// from it by its user and NET_ADMIN only (contract 5.13, 5.15).
func TestSecurity(t *testing.T) {
	pod := mustInject(t, simple(nil))
	proxy, init := container(t, pod, ProxyContainer).SecurityContext, container(t, pod, InitContainer).SecurityContext
	for _, s := range []*corev1.SecurityContext{proxy, init} {
		if *s.AllowPrivilegeEscalation || *s.Privileged || !*s.ReadOnlyRootFilesystem || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
			t.Errorf("too much: %v", s)
		}
	}
	if *proxy.RunAsUser != 1337 || *proxy.RunAsGroup != 1337 || !*proxy.RunAsNonRoot || len(proxy.Capabilities.Add) != 0 {
		t.Errorf("proxy: %v", proxy)
	}
	if *init.RunAsUser != 0 || *init.RunAsGroup != 0 || *init.RunAsNonRoot || !slices.Equal(init.Capabilities.Add, []corev1.Capability{"NET_ADMIN"}) {
		t.Errorf("istio-init: %v", init)
	}
	if pod.Spec.SecurityContext != nil {
		t.Error("the pod's own security context was touched: fsGroup would change the owner of the user's volumes")
	}
}

// TestBypassIsNamed: what would get past the proxy or collide with it gives a
// warning by name (contract 3.71, 5.21, 5.35, 5.36).
func TestBypassIsNamed(t *testing.T) {
	req := simple(nil)
	c := &req.Pod.Spec.Containers[0]
	c.SecurityContext = &corev1.SecurityContext{RunAsUser: new(int64(1337))}
	for _, port := range []int32{15000, 15001, 15004, 15006, 15008, 15020, 15021, 15053, 15090, 8080} {
		c.Ports = append(c.Ports, corev1.ContainerPort{ContainerPort: port})
	}
	_, warnings, err := Pod(req)
	if err != nil || len(warnings) != 10 || !strings.Contains(warnings[0], "runs as user or group 1337") {
		t.Fatalf("%d warnings: %q, %v", len(warnings), warnings, err)
	}
	for i, port := range []string{"15000", "15001", "15004", "15006", "15008", "15020", "15021", "15053", "15090"} {
		if !strings.Contains(warnings[i+1], "port "+port+" is reserved") {
			t.Errorf("port %s: %s", port, warnings[i+1])
		}
	}
}

// TestCustomProxy: what capture, identity and the proxy's rights rest on can't be
// customized, and each fault names what it is (contract 5.8).
func TestCustomProxy(t *testing.T) {
	for want, c := range map[string]corev1.Container{
		"args of the proxy":               {Args: []string{"x"}},
		"command of the proxy":            {Command: []string{"x"}},
		"securityContext of the proxy":    {SecurityContext: &corev1.SecurityContext{RunAsUser: new(int64(0))}},
		"ports of the proxy":              {Ports: []corev1.ContainerPort{{ContainerPort: 1}}},
		"env: POD_NAMESPACE":              {Env: []corev1.EnvVar{{Name: "POD_NAMESPACE", Value: "bank"}}},
		"env: INVALID_DROP":               {Env: []corev1.EnvVar{{Name: "INVALID_DROP", Value: "true"}}},
		"volumeMounts: x at /var/run":     {VolumeMounts: []corev1.VolumeMount{{Name: "x", MountPath: "/var/run/"}}},
		"volumeMounts: x at /var/run/sec": {VolumeMounts: []corev1.VolumeMount{{Name: "x", MountPath: "/var/run/secrets/tokens/istio-token"}}},
		"volumeMounts: x at /":            {VolumeMounts: []corev1.VolumeMount{{Name: "x", MountPath: "/"}}},
		"volumeMounts: istio-token at":    {VolumeMounts: []corev1.VolumeMount{{Name: "istio-token", MountPath: "/x"}}},
	} {
		req := simple(nil)
		c.Name, c.Image = ProxyContainer, "auto"
		req.Pod.Spec.Containers = append(req.Pod.Spec.Containers, c)
		if _, _, err := Pod(req); err == nil || !strings.HasPrefix(err.Error(), `container "istio-proxy": `+want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	req := simple(nil)
	own := corev1.Container{Name: ProxyContainer, Image: "registry.example.com/proxy:1", ImagePullPolicy: corev1.PullNever, RestartPolicy: new(corev1.ContainerRestartPolicyAlways)}
	req.Pod.Spec.InitContainers = []corev1.Container{own}
	if c := container(t, mustInject(t, req), ProxyContainer); c.Image != own.Image || c.ImagePullPolicy != own.ImagePullPolicy || *c.SecurityContext.RunAsUser != settings.ProxyUID {
		t.Errorf("%+v", c)
	}
	req.Pod.Spec.Containers = append(req.Pod.Spec.Containers, corev1.Container{Name: ProxyContainer, Image: "auto"})
	if _, _, err := Pod(req); err == nil || !strings.Contains(err.Error(), "brings it 2 times") {
		t.Error(err)
	}
	req = simple(nil)
	req.Pod.Spec.Containers = []corev1.Container{{Name: ProxyContainer, Image: "auto"}}
	if _, _, err := Pod(req); err == nil || !strings.Contains(err.Error(), "gateway") {
		t.Error(err)
	}
}

// TestWaitsForTheProxy: exactly one of a postStart hook and a startup probe holds
// the application back (contract 5.19, 5.43), and neither where the pod wants no
// probes of the proxy.
func TestWaitsForTheProxy(t *testing.T) {
	const classic, hold, port = "sidecar.istio.io/nativeSidecar=false", "proxy.istio.io/config={holdApplicationUntilProxyStarts: true}", "status.sidecar.istio.io/port=0"
	ownHook := &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"x"}}}}
	ownProbe := &corev1.Probe{PeriodSeconds: 7}
	for name, tt := range map[string]struct {
		annotations            []string
		custom                 *corev1.Container
		hook                   string // command of postStart
		startup, ready, drains bool
	}{
		"native":                      {hook: "podseal-proxy wait -timeout 10s", ready: true, drains: true},
		"native, no probes":           {annotations: []string{port}, drains: true},
		"native, no probes, but held": {annotations: []string{port, hold}, hook: "podseal-proxy wait -timeout 10s", drains: true},
		"native, own hook":            {custom: &corev1.Container{Lifecycle: ownHook}, hook: "x", startup: true, ready: true, drains: true},
		"native, own probe":           {custom: &corev1.Container{StartupProbe: ownProbe}, hook: "podseal-proxy wait -timeout 10s", startup: true, ready: true, drains: true},
		"classic":                     {annotations: []string{classic}, startup: true, ready: true},
		"classic, held":               {annotations: []string{classic, hold}, hook: "podseal-proxy wait", ready: true},
		"classic, no probes":          {annotations: []string{classic, port}},
	} {
		t.Run(name, func(t *testing.T) {
			annotations := map[string]string{}
			for _, a := range tt.annotations {
				name, value, _ := strings.Cut(a, "=")
				annotations[name] = value
			}
			req := simple(annotations)
			if tt.custom != nil {
				tt.custom.Name, tt.custom.Image = ProxyContainer, "auto"
				req.Pod.Spec.Containers = append(req.Pod.Spec.Containers, *tt.custom)
			}
			c := container(t, mustInject(t, req), ProxyContainer)
			hook, drains := "", false
			if l := c.Lifecycle; l != nil {
				drains = l.PreStop != nil
				if l.PostStart != nil {
					hook = strings.Join(l.PostStart.Exec.Command, " ")
				}
			}
			if hook != tt.hook || drains != tt.drains || (c.StartupProbe != nil) != tt.startup || (c.ReadinessProbe != nil) != tt.ready {
				t.Errorf("lifecycle %+v, startup %+v, readiness %+v", c.Lifecycle, c.StartupProbe, c.ReadinessProbe)
			}
			if p := c.StartupProbe; p != nil && tt.custom == nil && (p.HTTPGet.Path != "/healthz/ready" || p.HTTPGet.Port.IntVal != 15021 || p.PeriodSeconds != 1 || p.FailureThreshold != 600) {
				t.Error("startup", p)
			}
			if p := c.ReadinessProbe; p != nil && (p.HTTPGet.Path != "/healthz/ready" || p.HTTPGet.Port.IntVal != 15021 || p.PeriodSeconds != 15 || p.FailureThreshold != 4) {
				t.Error("readiness", p)
			}
		})
	}
}

// TestTrapsAreNamed: what goes wrong later gives a warning now (contract 5.43,
// 5.48).
func TestTrapsAreNamed(t *testing.T) {
	hook := &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(80)}}}
	for name, test := range map[string]struct {
		native, hold bool
		change       func(*corev1.PodSpec)
		want         string // in the one warning, or "" for none
	}{
		"a Job, classic":              {false, false, func(p *corev1.PodSpec) { p.RestartPolicy = corev1.RestartPolicyNever }, "/quitquitquit"},
		"a Job, native":               {true, false, func(p *corev1.PodSpec) { p.RestartPolicy = corev1.RestartPolicyOnFailure }, ""},
		"a server, classic":           {false, false, func(p *corev1.PodSpec) { p.RestartPolicy = corev1.RestartPolicyAlways }, ""},
		"the node's DNS":              {true, false, func(p *corev1.PodSpec) { p.DNSPolicy = corev1.DNSDefault }, "dnsPolicy: Default: the proxy looks up the control plane (istiod.d8-istio.svc:15012)"},
		"DNS of its own":              {true, false, func(p *corev1.PodSpec) { p.DNSPolicy = corev1.DNSNone }, "dnsPolicy: None"},
		"the cluster's DNS":           {true, false, func(p *corev1.PodSpec) { p.DNSPolicy = corev1.DNSClusterFirst }, ""},
		"postStart, classic":          {false, false, func(p *corev1.PodSpec) { p.Containers[0].Lifecycle = hook }, "holdApplicationUntilProxyStarts"},
		"postStart, classic, waiting": {false, true, func(p *corev1.PodSpec) { p.Containers[0].Lifecycle = hook }, ""},
		"postStart, native":           {true, false, func(p *corev1.PodSpec) { p.Containers[0].Lifecycle = hook }, ""},
	} {
		req := simple(nil)
		req.Params.NativeSidecars, req.Settings.Sidecar.HoldApplication = test.native, test.hold
		test.change(&req.Pod.Spec)
		_, warnings, err := Pod(req)
		if err != nil || (test.want == "") != (len(warnings) == 0) || (test.want != "" && !strings.Contains(warnings[0], test.want)) {
			t.Errorf("%s: %q, %v", name, warnings, err)
		}
	}
}

// TestEarlyProbes: sidecars of the user's own start before a classic proxy does,
// so what decides about their start must not go through it (contract 5.37, 5.43).
func TestEarlyProbes(t *testing.T) {
	get := corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/up", Port: intstr.FromInt32(8080)}}
	for _, native := range []bool{true, false} {
		req := simple(nil)
		req.Params.NativeSidecars = native
		req.Pod.Spec.InitContainers = []corev1.Container{{
			Name: "agent", RestartPolicy: new(corev1.ContainerRestartPolicyAlways),
			StartupProbe: &corev1.Probe{ProbeHandler: get}, LivenessProbe: &corev1.Probe{ProbeHandler: get},
			Lifecycle: &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{HTTPGet: get.HTTPGet}, PreStop: &corev1.LifecycleHandler{HTTPGet: get.HTTPGet}},
		}}
		agent := container(t, mustInject(t, req), "agent")
		for name, got := range map[string]struct {
			get     *corev1.HTTPGetAction
			rewrite bool
		}{
			"startup": {agent.StartupProbe.HTTPGet, native}, "liveness": {agent.LivenessProbe.HTTPGet, true},
			"postStart": {agent.Lifecycle.PostStart.HTTPGet, native}, "preStop": {agent.Lifecycle.PreStop.HTTPGet, true},
		} {
			if rewritten := got.get.Port.IntVal == statsPort; rewritten != got.rewrite {
				t.Errorf("native %t, %s: rewritten %t", native, name, rewritten)
			}
		}
	}
}

// TestPodSecurity: a namespace whose Pod Security forbids NET_ADMIN gets an
// error that says why and what to do.
func TestPodSecurity(t *testing.T) {
	for level, refused := range map[string]bool{"": false, "privileged": false, "baseline": true, "restricted": true} {
		req := simple(nil)
		req.Namespace.Labels["pod-security.kubernetes.io/enforce"] = level
		_, _, err := Pod(req)
		if refused != (err != nil) {
			t.Errorf("%q: %v", level, err)
		}
		if err != nil && (!strings.Contains(err.Error(), "NET_ADMIN") || !strings.Contains(err.Error(), "security.deckhouse.io/pod-policy=privileged")) {
			t.Error("unhelpful:", err)
		}
	}
}

// TestOrder: contract 5.42, 5.43; the annotation overrides (contract 5.41).
func TestOrder(t *testing.T) {
	for _, test := range []struct {
		native         bool
		annotation     string
		hold           bool
		inits, regular string
	}{
		{true, "", false, "istio-init istio-proxy first second", "web"},
		{true, "", true, "istio-init istio-proxy first second", "web"},
		{false, "true", false, "istio-init istio-proxy first second", "web"},
		{true, "false", false, "first second istio-init", "web istio-proxy"},
		{false, "", true, "first second istio-init", "istio-proxy web"},
	} {
		req := simple(nil)
		req.Pod.Spec.InitContainers = []corev1.Container{{Name: "first"}, {Name: "second"}}
		req.Params.NativeSidecars, req.Settings.Sidecar.HoldApplication = test.native, test.hold
		if test.annotation != "" {
			req.Pod.Annotations = map[string]string{"sidecar.istio.io/nativeSidecar": test.annotation}
		}
		pod := mustInject(t, req)
		if got := strings.Join(containerNames(pod.Spec.InitContainers), " "); got != test.inits {
			t.Errorf("%+v: init containers %s", test, got)
		}
		if got := strings.Join(containerNames(pod.Spec.Containers), " "); got != test.regular {
			t.Errorf("%+v: containers %s", test, got)
		}
	}
}

func TestTwiceIsOnce(t *testing.T) {
	req := simple(nil)
	req.Pod = mustInject(t, req)
	if pod, warnings, err := Pod(req); pod != nil || warnings != nil || err != nil {
		t.Errorf("injected again: %v %q %v", pod, warnings, err)
	}
}

func TestUnknownNamespace(t *testing.T) {
	req := simple(nil)
	req.Namespace = nil
	if _, _, err := Pod(req); err == nil {
		t.Error("a pod got past injection since its namespace wasn't known")
	}
}

// TestProbePaths: contract 5.37.
func TestProbePaths(t *testing.T) {
	req := simple(nil)
	req.Pod.Spec.Containers[0].ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/$(HOME)", Port: intstr.FromInt32(80)}}}
	pod := mustInject(t, req)
	get := pod.Spec.Containers[0].ReadinessProbe.HTTPGet
	if get.Path != "/app-health/web/readyz" || get.Port.IntVal != 15020 || get.Scheme != corev1.URISchemeHTTP {
		t.Errorf("%+v", get)
	}
	if got, want := env(t, container(t, pod, ProxyContainer), "ISTIO_KUBE_APP_PROBERS"), `{"/app-health/web/readyz":{"httpGet":{"path":"/$$(HOME)","port":80,"scheme":"HTTP"},"timeoutSeconds":1}}`; got != want {
		t.Errorf("%s, want %s: the kubelet would expand it", got, want)
	}
}

// TestDefaultsDontMatter: podseal inject reads pods in which the API server has filled in
// nothing yet; they get what the webhook gives them later.
func TestDefaultsDontMatter(t *testing.T) {
	raw := simple(nil)
	raw.Pod.Spec.Containers[0] = corev1.Container{
		Name: "web", Image: "a", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80}},
		ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromString("http")}}},
		LivenessProbe:  &corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 81}}},
		Lifecycle:      &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(80)}}},
	}
	filled := raw
	filled.Pod = raw.Pod.DeepCopy()
	c := &filled.Pod.Spec.Containers[0]
	c.Ports[0].Protocol = corev1.ProtocolTCP
	for _, probe := range []*corev1.Probe{c.ReadinessProbe, c.LivenessProbe} {
		probe.TimeoutSeconds, probe.PeriodSeconds, probe.SuccessThreshold, probe.FailureThreshold = 1, 10, 1, 3
	}
	c.LivenessProbe.GRPC.Service = new("")
	for _, get := range []*corev1.HTTPGetAction{c.ReadinessProbe.HTTPGet, c.Lifecycle.PreStop.HTTPGet} {
		get.Path, get.Scheme = "/", corev1.URISchemeHTTP
	}
	one, two := mustInject(t, raw), mustInject(t, filled)
	if a, b := container(t, one, ProxyContainer), container(t, two, ProxyContainer); !reflect.DeepEqual(a, b) {
		t.Errorf("%+v\n%+v", a.Env, b.Env)
	}
}

// TestProbePorts: contract 5.40, and ports that the API server would no longer
// see.
func TestProbePorts(t *testing.T) {
	named := []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}
	for _, test := range []struct {
		handler corev1.ProbeHandler
		want    string // in the environment, or "" if refused
	}{
		{corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromString("http")}}, `"port":8080`},
		{corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("81")}}, `"port":81`},
		{corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 82}}, `"port":82`},
		{corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromString("nowhere")}}, ""},
		{corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{}}, ""},
		{corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(65536)}}, ""},
		{corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("0")}}, ""},
		{corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: -1}}, ""},
	} {
		req := simple(nil)
		req.Pod.Spec.Containers[0].Ports = named
		req.Pod.Spec.Containers[0].LivenessProbe = &corev1.Probe{ProbeHandler: test.handler}
		pod, _, err := Pod(req)
		if test.want == "" {
			if err == nil || !strings.HasPrefix(err.Error(), `container "web": livenessProbe: port `) {
				t.Errorf("%v: %v", test.handler, err)
			}
			continue
		}
		if err != nil {
			t.Error(err)
		} else if got := env(t, container(t, pod, ProxyContainer), "ISTIO_KUBE_APP_PROBERS"); !strings.Contains(got, test.want) {
			t.Errorf("%s lacks %s", got, test.want)
		}
	}
}

// TestAppMetrics: contract 5.12.
func TestAppMetrics(t *testing.T) {
	const scrape, port, path, merge = "prometheus.io/scrape", "prometheus.io/port", "prometheus.io/path", "prometheus.istio.io/merge-metrics"
	for _, test := range []struct {
		annotations map[string]string
		toProxy     bool
		app         string
	}{
		{nil, true, ""},
		{map[string]string{scrape: "true", port: "8080", path: "/m"}, true, `{"path":"/m","port":"8080","scrape":"true"}`},
		{map[string]string{scrape: "true"}, true, `{"path":"","port":"","scrape":"true"}`},
		{map[string]string{scrape: "true", port: "15020"}, true, ""},
		{map[string]string{scrape: "false", port: "8080"}, false, ""},
		{map[string]string{scrape: "true", port: "8080", merge: "false"}, false, ""},
	} {
		pod := mustInject(t, simple(test.annotations))
		if got := pod.Annotations[port] == "15020" && pod.Annotations[scrape] == "true" && pod.Annotations[path] == "/stats/prometheus"; got != test.toProxy {
			t.Errorf("%v: %v", test.annotations, pod.Annotations)
		}
		c := container(t, pod, ProxyContainer)
		if i := slices.IndexFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == "ISTIO_PROMETHEUS_ANNOTATIONS" }); i < 0 {
			if test.app != "" {
				t.Errorf("%v: the proxy isn't told", test.annotations)
			}
		} else if c.Env[i].Value != test.app {
			t.Errorf("%v: %s, want %s", test.annotations, c.Env[i].Value, test.app)
		}
	}
	if _, _, err := Pod(simple(map[string]string{scrape: "true", port: "http"})); err == nil {
		t.Error("a port that the proxy would refuse at its start was accepted")
	}
}

// TestNamespaceOfTheRequest: contract 5.10.
func TestNamespaceOfTheRequest(t *testing.T) {
	req := simple(nil)
	req.NamespaceName = "other"
	if got := env(t, container(t, mustInject(t, req), ProxyContainer), "ISTIO_META_OWNER"); got != "kubernetes://apis/v1/namespaces/other/pods/web" {
		t.Error(got)
	}
}

// TestNamesOfTheWiring: what users' tooling and the proxy look for (contract
// 5.12, 5.15 to 5.19).
func TestNamesOfTheWiring(t *testing.T) {
	pod := mustInject(t, simple(nil))
	c := container(t, pod, ProxyContainer)
	for name := range strings.FieldsSeq(`PILOT_CERT_PROVIDER CA_ADDR POD_NAME POD_NAMESPACE INSTANCE_IP SERVICE_ACCOUNT HOST_IP ISTIO_CPU_LIMIT PROXY_CONFIG
		ISTIO_META_POD_PORTS ISTIO_META_APP_CONTAINERS GOMEMLIMIT ISTIO_META_CLUSTER_ID ISTIO_META_NODE_NAME ISTIO_META_INTERCEPTION_MODE
		ISTIO_META_WORKLOAD_NAME ISTIO_META_OWNER ISTIO_META_MESH_ID TRUST_DOMAIN`) {
		env(t, c, name)
	}
	if want := []string{"proxy", "sidecar", "--domain", "$(POD_NAMESPACE).svc.cluster.local"}; !slices.Equal(c.Args, want) {
		t.Error("arguments", c.Args)
	}
	mounts := map[string]string{}
	for _, m := range c.VolumeMounts {
		mounts[m.Name] = m.MountPath
	}
	if diff := cmp.Diff(map[string]string{
		"istiod-ca-cert": "/var/run/secrets/istio", "istio-token": "/var/run/secrets/tokens", "istio-data": "/var/lib/istio/data",
		"istio-envoy": "/etc/istio/proxy", "istio-podinfo": "/etc/istio/pod",
	}, mounts); diff != "" {
		t.Error(diff)
	}
	for _, v := range pod.Spec.Volumes {
		if mounts[v.Name] == "" {
			t.Error("nothing mounts", v.Name)
		}
		if v.Name == "istio-token" {
			token := v.Projected.Sources[0].ServiceAccountToken
			if token.Audience != "istio-ca" || *token.ExpirationSeconds != 43200 || token.Path != "istio-token" {
				t.Error("token", token)
			}
		}
	}
	var st status
	if err := json.Unmarshal([]byte(pod.Annotations["sidecar.istio.io/status"]), &st); err != nil || !slices.Equal(st.InitContainers, []string{"istio-init", "istio-proxy"}) || len(st.Volumes) != len(pod.Spec.Volumes) || st.Revision != "default" {
		t.Error("status", st, err)
	}
}

// TestWorkload: contract 5.11.
func TestWorkload(t *testing.T) {
	owned := func(kind, name string, labels map[string]string) *corev1.Pod {
		yes := true
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
			GenerateName: name + "-", Labels: labels,
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: kind, Name: name, Controller: &yes}},
		}}
	}
	hash := map[string]string{"pod-template-hash": "76d6c9b8c"}
	long := strings.Repeat("a", 62) + ".b"
	for _, test := range []struct {
		pod             *corev1.Pod
		want, canonical string
	}{
		{owned("ReplicaSet", "web-76d6c9b8c", hash), "Deployment web", "web"},
		{owned("ReplicaSet", "web-76d6c9b8c", nil), "ReplicaSet web-76d6c9b8c", "web-76d6c9b8c"},
		{owned("ReplicaSet", "-76d6c9b8c", hash), "ReplicaSet -76d6c9b8c", "76d6c9b8c"},
		{owned("ReplicaSet", "web-1", map[string]string{"rollouts-pod-template-hash": "1"}), "Rollout web", "web"},
		{owned("Job", "backup-28000000", nil), "CronJob backup", "backup"},
		{owned("Job", "once", nil), "Job once", "once"},
		{owned("StatefulSet", "db", map[string]string{"app": "store"}), "StatefulSet db", "store"},
		{owned("DaemonSet", "agent", map[string]string{"app": "x", "app.kubernetes.io/name": "y"}), "DaemonSet agent", "y"},
		{&corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "debug-"}}, "Pod debug", "debug"},
		{&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: long}}, "Pod " + long, strings.Repeat("a", 62)},
	} {
		w := workloadOf(test.pod)
		if got := w.kind + " " + w.name; got != test.want {
			t.Errorf("%s, want %s", got, test.want)
		}
		if got := w.canonicalName(test.pod.Labels); got != test.canonical {
			t.Errorf("canonical name %s, want %s", got, test.canonical)
		}
	}
	for want, labels := range map[string]map[string]string{
		"latest": nil, "1": {"version": "1"}, "2": {"version": "1", "app.kubernetes.io/version": "2"},
	} {
		if got := canonicalRevision(labels); got != want {
			t.Errorf("canonical revision %s, want %s", got, want)
		}
	}
}

// captureAccepts fails if the capture program would refuse the arguments that
// injection wrote (contract 5.13).
func captureAccepts(t *testing.T, pod *corev1.Pod) capture.Options {
	t.Helper()
	init := container(t, pod, InitContainer)
	getenv := func(name string) string {
		for _, e := range init.Env {
			if e.Name == name {
				return e.Value
			}
		}
		return ""
	}
	if init.Args[0] != "capture" {
		t.Fatal(init.Args)
	}
	o, err := capture.Parse(init.Args[1:], getenv, io.Discard)
	if err != nil {
		t.Fatalf("%q: %v", init.Args, err)
	}
	return o
}

func TestCaptureArgs(t *testing.T) {
	got := captureAccepts(t, mustInject(t, simple(nil)))
	if diff := cmp.Diff(capture.Default(), got.Config, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Error("the arguments of a plain pod are not the defaults of the capture program:", diff)
	}
	if !captureAccepts(t, mustInject(t, simple(map[string]string{"traffic.sidecar.istio.io/includeInboundPorts": "*"}))).IncludeInboundPorts.All {
		t.Error("* is not all")
	}
	none := captureAccepts(t, mustInject(t, simple(map[string]string{"traffic.sidecar.istio.io/includeInboundPorts": "", "traffic.sidecar.istio.io/includeOutboundIPRanges": ""})))
	if none.IncludeInboundPorts.All || none.IncludeOutboundCIDRs.All || len(none.IncludeInboundPorts.List)+len(none.IncludeOutboundCIDRs.List) > 0 {
		t.Error("empty lists capture nothing (contract 5.29)")
	}
}

// FuzzAnnotations: no annotation panics; what is accepted is accepted by the
// capture program and leaves the request alone.
func FuzzAnnotations(f *testing.F) {
	for _, seed := range []string{"", "*", "1,2", "10.0.0.0/8,fd00::/8", "true", "eth0", "{concurrency: 1}", "a: [", "100m", "proxyMetadata: {ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR: 127.0.0.0/8}", "\x00", "debug"} {
		for i := range honoured() {
			f.Add(i, seed)
		}
	}
	f.Fuzz(func(t *testing.T, i int, value string) {
		names := honoured()
		req := simple(map[string]string{names[max(i, 0)%len(names)]: value})
		before := req.Pod.DeepCopy()
		pod, _, err := Pod(req)
		if diff := cmp.Diff(before, req.Pod); diff != "" {
			t.Error("the request was changed:", diff)
		}
		if err != nil || pod == nil {
			return
		}
		if slices.Contains(containerNames(pod.Spec.InitContainers), InitContainer) {
			captureAccepts(t, pod)
		}
		if !alreadyInjected(pod) {
			t.Error("injected, but the pod doesn't show it")
		}
	})
}

// TestUserVolumes: contract 5.23.
func TestUserVolumes(t *testing.T) {
	const volume, mount = "sidecar.istio.io/userVolume", "sidecar.istio.io/userVolumeMount"
	for name, a := range map[string]map[string]string{
		"by name": {volume: `{"certs": {"secret": {"secretName": "s"}}}`, mount: `{"certs": {"mountPath": "/etc/certs", "readOnly": true}}`},
		"lists":   {volume: `[{"name": "certs", "secret": {"secretName": "s"}}]`, mount: `[{"name": "certs", "mountPath": "/etc/certs", "readOnly": true}]`},
	} {
		pod, warnings, err := Pod(simple(a))
		if err != nil || len(warnings) > 0 {
			t.Fatal(name, warnings, err)
		}
		mounts := container(t, pod, ProxyContainer).VolumeMounts
		if got := mounts[len(mounts)-1]; got.Name != "certs" || got.MountPath != "/etc/certs" || !got.ReadOnly {
			t.Errorf("%s: %+v", name, got)
		}
		if v := pod.Spec.Volumes[len(pod.Spec.Volumes)-1]; v.Name != "certs" || v.Secret.SecretName != "s" {
			t.Errorf("%s: %+v", name, v)
		}
	}
	for want, a := range map[string]map[string]string{
		"userVolume: write a JSON object":               {volume: "certs"},
		"userVolumeMount: write a JSON object":          {mount: "{"},
		"userVolume: entry 1: not what Kubernetes":      {volume: `{"certs": {"secrets": {}}}`},
		"userVolumeMount: entry 2: not what Kubernetes": {volume: `{"a": {"emptyDir": {}}}`, mount: `[{"name": "a", "mountPath": "/a"}, {"path": "/"}]`},
		`userVolume: "A" is no name for a volume`:       {volume: `{"A": {"emptyDir": {}}}`},
		`userVolume: "" is no name`:                     {volume: `[null]`},
		`there is a volume "istio-token" already`:       {volume: `{"istio-token": {"emptyDir": {}}}`},
		`there is a volume "a" already`:                 {volume: `[{"name": "a"}, {"name": "a"}]`},
		"x at /var/run is the proxy's own":              {volume: `{"x": {"emptyDir": {}}}`, mount: `{"x": {"mountPath": "/var/run"}}`},
		"istio-token at /x is the proxy's own":          {mount: `{"istio-token": {"mountPath": "/x"}}`},
		`the pod has no volume "nowhere"`:               {mount: `{"nowhere": {"mountPath": "/x"}}`},
		"write a mountPath":                             {volume: `{"x": null}`, mount: `{"x": {}}`},
	} {
		if _, _, err := Pod(simple(a)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", a, err, want)
		}
	}
}

func FuzzUserVolumes(f *testing.F) {
	f.Add(`{"certs": {"secret": {"secretName": "s"}}}`, `[{"name": "certs", "mountPath": "/x"}]`)
	f.Fuzz(func(t *testing.T, volume, mount string) {
		pod, _, err := Pod(simple(map[string]string{"sidecar.istio.io/userVolume": volume, "sidecar.istio.io/userVolumeMount": mount}))
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for _, v := range pod.Spec.Volumes {
			if seen[v.Name] {
				t.Errorf("two volumes %q", v.Name)
			}
			seen[v.Name] = true
		}
		for _, m := range container(t, pod, ProxyContainer).VolumeMounts {
			if !seen[m.Name] {
				t.Errorf("no volume %q", m.Name)
			}
		}
	})
}
