package inject

import (
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/pod-security-admission/api"
	podsecurity "k8s.io/pod-security-admission/policy"

	"podseal.io/podseal/internal/capture"
	"podseal.io/podseal/internal/cni"
)

// byPlugin is a request under trafficRedirectionSetupMode CNIPlugin.
func byPlugin(annotations map[string]string) Request {
	req := simple(annotations)
	req.Settings.CNIPlugin = true
	return req
}

// TestPluginOrder: with the CNI plugin there is no istio-init. A native proxy proves
// the capture itself; before a classic one istio-validation does (contract 5.14,
// 5.42, 5.43).
func TestPluginOrder(t *testing.T) {
	for _, test := range []struct {
		native, hold   bool
		annotations    map[string]string
		inits, regular string
		proves         bool
		warned         int
	}{
		{native: true, inits: "istio-proxy first second", regular: "web", proves: true},
		{native: false, inits: "istio-validation first second", regular: "web istio-proxy", proves: true, warned: 2},
		{native: false, hold: true, inits: "istio-validation first second", regular: "istio-proxy web", proves: true, warned: 2},
		{native: true, annotations: map[string]string{"sidecar.istio.io/interceptionMode": "NONE"}, inits: "istio-proxy first second", regular: "web", warned: 1},
	} {
		req := byPlugin(test.annotations)
		req.Pod.Spec.InitContainers = []corev1.Container{{Name: "first"}, {Name: "second"}}
		req.Params.NativeSidecars, req.Settings.Sidecar.HoldApplication = test.native, test.hold
		pod, warnings, err := Pod(req)
		if err != nil || len(warnings) != test.warned {
			t.Errorf("%+v: %q, %v", test, warnings, err)
			continue
		}
		if got := strings.Join(containerNames(pod.Spec.InitContainers), " "); got != test.inits {
			t.Errorf("%+v: init containers %s", test, got)
		}
		if got := strings.Join(containerNames(pod.Spec.Containers), " "); got != test.regular {
			t.Errorf("%+v: containers %s", test, got)
		}
		if proves := slices.Contains(container(t, pod, ProxyContainer).Args, "--require-capture"); proves != test.proves {
			t.Errorf("%+v: the proxy proves the capture: %t", test, proves)
		}
		if test.native {
			continue
		}
		v := container(t, pod, ValidationContainer)
		opts, err := capture.Parse(v.Args[1:], func(string) string { return "" }, io.Discard)
		if err != nil || v.Args[0] != "capture" || !opts.ProveOnly || *v.SecurityContext.RunAsUser != 1337 || v.SecurityContext.Capabilities.Add != nil {
			t.Errorf("istio-validation: %+v, %v", v, err)
		}
	}
	req := byPlugin(nil)
	req.Pod.Spec.InitContainers = []corev1.Container{{Name: ValidationContainer}}
	if _, _, err := Pod(req); err == nil || !strings.Contains(err.Error(), ValidationContainer) {
		t.Error("a pod brings istio-validation:", err)
	}
}

// TestPluginSeesTheSame: what the plugin reads of an injected pod is what an init
// container would have been told (contract 5.51).
func TestPluginSeesTheSame(t *testing.T) {
	for name, annotations := range map[string]map[string]string{
		"nothing": nil,
		"all": {
			"traffic.sidecar.istio.io/includeOutboundIPRanges": "10.0.0.0/8, fd00::/8", "traffic.sidecar.istio.io/excludeOutboundIPRanges": "10.1.0.0/16",
			"traffic.sidecar.istio.io/excludeInboundPorts": "22,9000", "traffic.sidecar.istio.io/includeOutboundPorts": "53", "traffic.sidecar.istio.io/excludeOutboundPorts": "25",
			"traffic.sidecar.istio.io/excludeInterfaces": "net1", "traffic.sidecar.istio.io/kubevirtInterfaces": "tap0", "istio.io/reroute-virtual-interfaces": "tap1",
			"proxy.istio.io/config": `proxyMetadata: {ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR: "127.0.0.0/8"}`,
		},
		"empty": {
			"traffic.sidecar.istio.io/includeOutboundIPRanges": "", "traffic.sidecar.istio.io/includeInboundPorts": "", "traffic.sidecar.istio.io/excludeOutboundPorts": "",
		},
		"inbound ports": {"traffic.sidecar.istio.io/includeInboundPorts": "80,443"},
	} {
		t.Run(name, func(t *testing.T) {
			request := func(plugin bool) Request {
				req := simple(annotations)
				req.Settings.CNIPlugin = plugin
				req.Settings.Sidecar.ExcludeOutboundPorts = []uint16{3306}
				req.Settings.Sidecar.ExcludeInboundPorts = []uint16{8443}
				return req
			}
			c := container(t, mustInject(t, request(false)), InitContainer)
			opts, err := capture.Parse(c.Args[1:], func(name string) string {
				for _, e := range c.Env {
					if e.Name == name {
						return e.Value
					}
				}
				return ""
			}, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			got, err := cni.Wanted(mustInject(t, request(true)).Annotations)
			if err != nil || got == nil {
				t.Fatalf("the plugin would not capture it: %v", err)
			}
			opt := cmp.Options{cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}
			if diff := cmp.Diff(capture.Build(opts.Config).Text(), capture.Build(*got).Text(), opt); diff != "" {
				t.Error(diff)
			}
		})
	}
	for name, req := range map[string]Request{
		"by an init container": simple(nil),
		"not captured":         byPlugin(map[string]string{"sidecar.istio.io/interceptionMode": "NONE"}),
	} {
		if got, err := cni.Wanted(mustInject(t, req).Annotations); got != nil || err != nil {
			t.Errorf("%s: the plugin captures it: %+v, %v", name, got, err)
		}
	}
}

// TestPodSecurityStandard: a pod that passes "restricted" still does with the proxy in
// it when the CNI plugin captures, as Kubernetes' own admission judges it; with an init
// container it passes "baseline" no more.
func TestPodSecurityStandard(t *testing.T) {
	evaluator, err := podsecurity.NewEvaluator(podsecurity.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	judge := func(level api.Level, pod *corev1.Pod) []string {
		var out []string
		for _, r := range evaluator.EvaluatePod(api.LevelVersion{Level: level, Version: api.LatestVersion()}, &pod.ObjectMeta, &pod.Spec) {
			if !r.Allowed {
				out = append(out, r.ForbiddenReason+": "+r.ForbiddenDetail)
			}
		}
		return out
	}
	for _, native := range []bool{true, false} {
		for _, plugin := range []bool{true, false} {
			req := simple(map[string]string{"proxy.istio.io/config": "{holdApplicationUntilProxyStarts: true}"})
			req.Params.NativeSidecars, req.Settings.CNIPlugin = native, plugin
			never, yes := false, true
			req.Pod.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsNonRoot: &yes, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}}
			req.Pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{AllowPrivilegeEscalation: &never, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}}
			if faults := judge(api.LevelRestricted, req.Pod); len(faults) > 0 {
				t.Fatalf("not restricted before: %q", faults)
			}
			pod := mustInject(t, req)
			restricted, baseline := judge(api.LevelRestricted, pod), judge(api.LevelBaseline, pod)
			if plugin && len(restricted) > 0 {
				t.Errorf("native %t, by the plugin: %q", native, restricted)
			}
			if !plugin && (len(restricted) == 0 || len(baseline) == 0) {
				t.Errorf("native %t, by istio-init: restricted %q, baseline %q", native, restricted, baseline)
			}
			// and what injection says of such namespaces is what admission would
			req.Namespace.Labels["pod-security.kubernetes.io/enforce"] = "restricted"
			if _, _, err := Pod(req); (err == nil) != plugin {
				t.Errorf("native %t, by the plugin %t: %v", native, plugin, err)
			}
		}
	}
}
