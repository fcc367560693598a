package inject

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"istio.io/api/annotation"
	corev1 "k8s.io/api/core/v1"

	"podseal.io/podseal/internal/settings"
)

// options is what settings and annotations together say of one pod, and what
// is wrong with the annotations.
type options struct {
	faults   []error
	warnings []string

	image        string
	logLevel     string // "" for the default
	native       bool
	hold         bool   // classic: the application waits for the proxy
	capture      bool   // istio-init is needed
	interception string // REDIRECT or NONE

	probed        bool // the proxy has probes itself
	rewriteProbes bool
	mergeMetrics  bool

	resources corev1.ResourceRequirements
	readiness readiness
	traffic   traffic
	user      userVolumes
	proxyConfig
}

// readiness is the timing of the proxy's readiness probe, in seconds and
// times.
type readiness struct{ initialDelay, period, failures int32 }

// traffic is what is captured, each as the capture program wants it.
type traffic struct {
	includeRanges, excludeRanges               []string
	includeInboundPorts, excludeInboundPorts   []string
	includeOutboundPorts, excludeOutboundPorts []string
	excludeInterfaces, rerouteInterfaces       []string
}

func (o *options) fault(format string, args ...any) {
	o.faults = append(o.faults, fmt.Errorf(format, args...))
}

func (o *options) warn(format string, args ...any) {
	o.warnings = append(o.warnings, fmt.Sprintf(format, args...))
}

// reader reads annotations of one pod into options.
type reader struct {
	*options
	annotations map[string]string
}

// wrong notes a value that is not right, and what would be.
func (r reader) wrong(name, value, want string) {
	r.fault("annotation %s: %q: %s", name, value, want)
}

// readOptions reads all annotations that have a meaning (contract 5.22, 5.23).
func readOptions(req Request) options {
	s := req.Settings.Sidecar
	o := options{
		image: req.Params.ProxyImage, native: req.Params.NativeSidecars, hold: s.HoldApplication,
		interception: "REDIRECT", capture: true, probed: true, rewriteProbes: true, mergeMetrics: true,
		readiness: readiness{period: 15, failures: 4},
		traffic: traffic{
			includeRanges: texts(s.IncludeOutboundIPRanges), excludeRanges: texts(s.ExcludeOutboundIPRanges),
			includeInboundPorts: []string{"*"}, excludeInboundPorts: texts(s.ExcludeInboundPorts),
			excludeOutboundPorts: texts(s.ExcludeOutboundPorts),
		},
	}
	if len(o.traffic.includeRanges) == 0 {
		o.traffic.includeRanges = []string{"*"}
	}
	r := reader{&o, req.Pod.Annotations}
	r.modes()
	r.image()
	r.timing()
	r.capture()
	r.resources(s)
	if text, set := r.annotations[annotation.ProxyConfig.Name]; set {
		r.proxyConfig(text)
	}
	o.discoveryAddress = req.Params.DiscoveryAddress
	r.templates()
	r.userVolumes(req.Pod)
	r.unknown(req.Pod)
	return o
}

// texts are the values as text.
func texts[T any](values []T) []string {
	var out []string
	for _, v := range values {
		out = append(out, fmt.Sprint(v))
	}
	return out
}

func (r reader) boolean(name string, out *bool) {
	value, set := r.annotations[name]
	if !set {
		return
	}
	b, err := strconv.ParseBool(value)
	if err != nil {
		r.wrong(name, value, "write true or false")
		return
	}
	*out = b
}

func (r reader) modes() {
	r.boolean(annotation.SidecarNativeSidecar.Name, &r.native)
	r.boolean(annotation.SidecarRewriteAppHTTPProbers.Name, &r.rewriteProbes)
	r.boolean(annotation.PrometheusMergeMetrics.Name, &r.mergeMetrics)
	name := annotation.SidecarInterceptionMode.Name
	switch mode, set := r.annotations[name]; {
	case !set || mode == "REDIRECT":
	case mode == "NONE":
		r.interception, r.options.capture = mode, false
		r.warn("annotation %s: NONE: traffic of the pod is not captured, so it is not encrypted", name)
	case mode == "TPROXY":
		r.wrong(name, mode, "not available in this version; write REDIRECT")
	default:
		r.wrong(name, mode, "write REDIRECT or NONE")
	}
}

func (r reader) image() {
	if image, set := r.annotations[annotation.SidecarProxyImage.Name]; set {
		if image == "" || strings.ContainsFunc(image, func(c rune) bool { return c <= ' ' || c > '~' }) {
			r.wrong(annotation.SidecarProxyImage.Name, image, "write the reference of an image")
		}
		r.options.image = image
	}
	name := annotation.SidecarLogLevel.Name
	level, set := r.annotations[name]
	if !set {
		return
	}
	for known, ours := range map[string]string{
		"trace": "debug", "debug": "debug", "info": "info", "warning": "warn", "warn": "warn", "error": "error", "critical": "error", "off": "error",
	} {
		if level == known {
			r.logLevel = ours
			return
		}
	}
	r.wrong(name, level, "write debug, info, warning or error")
}

func (r reader) timing() {
	const other = "the status port is 15021, another has no effect"
	name := annotation.SidecarStatusPort.Name
	switch port, set := r.annotations[name]; {
	case !set || port == "15021":
	case port == "0":
		r.probed = false
	case !isPort(port):
		r.wrong(name, port, "write 0 for no probes, or leave it out")
	default:
		r.warn("annotation %s: %s", name, other)
	}
	r.number(annotation.SidecarStatusReadinessInitialDelaySeconds.Name, 0, &r.readiness.initialDelay)
	r.number(annotation.SidecarStatusReadinessPeriodSeconds.Name, 1, &r.readiness.period)
	r.number(annotation.SidecarStatusReadinessFailureThreshold.Name, 1, &r.readiness.failures)
}

func (r reader) number(name string, least int32, out *int32) {
	value, set := r.annotations[name]
	if !set {
		return
	}
	n, err := strconv.ParseInt(value, 10, 32)
	if err != nil || int32(n) < least {
		r.wrong(name, value, fmt.Sprintf("write a whole number, at least %d", least))
		return
	}
	*out = int32(n)
}

// capture reads what is captured. An annotation replaces the setting.
func (r reader) capture() {
	t := &r.traffic
	r.list(annotation.SidecarTrafficIncludeOutboundIPRanges.Name, &t.includeRanges, isRange, "write ranges such as 10.0.0.0/8, separated by commas, or * alone", "*")
	r.list(annotation.SidecarTrafficExcludeOutboundIPRanges.Name, &t.excludeRanges, isRange, "write ranges such as 10.0.0.0/8, separated by commas")
	const ports = "write ports from 1 to 65535, separated by commas"
	r.list(annotation.SidecarTrafficIncludeInboundPorts.Name, &t.includeInboundPorts, isPort, ports+", or * alone", "*")
	r.list(annotation.SidecarTrafficExcludeInboundPorts.Name, &t.excludeInboundPorts, isPort, ports)
	r.list(annotation.SidecarTrafficIncludeOutboundPorts.Name, &t.includeOutboundPorts, isPort, ports)
	r.list(annotation.SidecarTrafficExcludeOutboundPorts.Name, &t.excludeOutboundPorts, isPort, ports)
	const interfaces = "write names of network interfaces (at most 15 characters, + at the end for all that begin so), separated by commas"
	r.list(annotation.SidecarTrafficExcludeInterfaces.Name, &t.excludeInterfaces, isInterface, interfaces)
	r.list(annotation.SidecarTrafficKubevirtInterfaces.Name, &t.rerouteInterfaces, isInterface, interfaces)
	r.list(annotation.IoIstioRerouteVirtualInterfaces.Name, &t.rerouteInterfaces, isInterface, interfaces)
}

// list reads values that are separated by commas. all are values that are right
// only alone.
func (r reader) list(name string, out *[]string, valid func(string) bool, want string, all ...string) {
	text, set := r.annotations[name]
	if !set {
		return
	}
	*out = nil
	if slices.Contains(all, strings.TrimSpace(text)) {
		*out = []string{strings.TrimSpace(text)}
		return
	}
	for value := range strings.SplitSeq(text, ",") {
		value = strings.TrimSpace(value)
		switch {
		case value == "":
		case !valid(value):
			r.wrong(name, value, want)
		default:
			*out = append(*out, value)
		}
	}
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0 && s[0] != '+' && s[0] != '0'
}

func isRange(s string) bool {
	p, err := netip.ParsePrefix(s)
	return err == nil && !p.Addr().Is4In6()
}

func isInterface(s string) bool {
	return s != "." && s != ".." && regexp.MustCompile(`^[A-Za-z0-9_.@-]{1,15}$|^[A-Za-z0-9_.@-]{1,14}\+$`).MatchString(s)
}

// resources reads what the proxy may use. Any of the four annotations replaces
// all of the settings; what it doesn't name is then unset (contract 5.20).
func (r reader) resources(s settings.Sidecar) {
	names := [4]string{annotation.SidecarProxyCPU.Name, annotation.SidecarProxyMemory.Name, annotation.SidecarProxyCPULimit.Name, annotation.SidecarProxyMemoryLimit.Name}
	values, annotated := [4]string{s.RequestCPU, s.RequestMemory, s.LimitCPU, s.LimitMemory}, false
	for _, name := range names {
		_, set := r.annotations[name]
		annotated = annotated || set
	}
	if annotated {
		for i, name := range names {
			values[i] = r.annotations[name]
		}
	}
	out := &r.options.resources
	for i, part := range []struct {
		list *corev1.ResourceList
		kind corev1.ResourceName
	}{{&out.Requests, corev1.ResourceCPU}, {&out.Requests, corev1.ResourceMemory}, {&out.Limits, corev1.ResourceCPU}, {&out.Limits, corev1.ResourceMemory}} {
		_, set := r.annotations[names[i]]
		if values[i] == "" && !set {
			continue
		}
		q, err := settings.ParseQuantity(values[i])
		if err != nil {
			r.wrong(names[i], values[i], "write a Kubernetes quantity above zero, such as 100m or 128Mi")
			continue
		}
		if *part.list == nil {
			*part.list = corev1.ResourceList{}
		}
		(*part.list)[part.kind] = q
	}
	for _, part := range []struct {
		limitName string
		kind      corev1.ResourceName
	}{{names[2], corev1.ResourceCPU}, {names[3], corev1.ResourceMemory}} {
		request, asked := out.Requests[part.kind]
		limit, limited := out.Limits[part.kind]
		if asked && limited && limit.Cmp(request) < 0 {
			r.wrong(part.limitName, limit.String(), "less than the request, which is "+request.String())
		}
	}
}
