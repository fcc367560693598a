package inject

import (
	"cmp"
	"encoding/json"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// prober is one probe or hook of the application, as the proxy is to carry it
// out: one entry of ISTIO_KUBE_APP_PROBERS, whose keys are paths (contract
// 5.37). Ports are numbers.
type prober struct {
	HTTPGet        *corev1.HTTPGetAction   `json:"httpGet,omitempty"`
	TCPSocket      *corev1.TCPSocketAction `json:"tcpSocket,omitempty"`
	GRPC           *corev1.GRPCAction      `json:"grpc,omitempty"`
	TimeoutSeconds int32                   `json:"timeoutSeconds,omitempty"`
}

// probers leads the probes and hooks of the pod through the proxy and notes the
// originals: the kubelet is no peer of the mesh, so under STRICT its own
// requests would be refused (contract 5.39).
func (in *injection) probers() {
	if !in.rewriteProbes {
		return
	}
	found := map[string]prober{}
	for i := range in.pod.Spec.InitContainers {
		in.rewriteContainer(&in.pod.Spec.InitContainers[i], !in.native, found)
	}
	for i := range in.pod.Spec.Containers {
		in.rewriteContainer(&in.pod.Spec.Containers[i], false, found)
	}
	if len(found) == 0 {
		return
	}
	b, err := json.Marshal(found)
	if err != nil {
		in.fault("write the probes of the application: %v", err)
		return
	}
	in.appProbe = literal(string(b))
}

// rewriteContainer leaves what happens while a container starts as it is if that
// is early: before there is a proxy, and before anything is captured.
func (in *injection) rewriteContainer(c *corev1.Container, early bool, found map[string]prober) {
	for _, p := range []struct {
		name, path string
		probe      *corev1.Probe
	}{
		{"readinessProbe", "readyz", c.ReadinessProbe},
		{"livenessProbe", "livez", c.LivenessProbe},
		{"startupProbe", "startupz", c.StartupProbe},
	} {
		if p.probe == nil || (early && p.probe == c.StartupProbe) {
			continue
		}
		path := "/app-health/" + c.Name + "/" + p.path
		h := &p.probe.ProbeHandler
		original := prober{h.HTTPGet, h.TCPSocket, h.GRPC, cmp.Or(p.probe.TimeoutSeconds, 1)}
		if get, note := in.rewrite(c, p.name, path, original); get != nil {
			h.HTTPGet, h.TCPSocket, h.GRPC = get, nil, nil
			found[path] = note
		}
	}
	if c.Lifecycle == nil {
		return
	}
	for _, l := range []struct {
		name, path string
		handler    *corev1.LifecycleHandler
	}{{"lifecycle.preStop", "prestopz", c.Lifecycle.PreStop}, {"lifecycle.postStart", "poststartz", c.Lifecycle.PostStart}} {
		if l.handler == nil || (early && l.handler == c.Lifecycle.PostStart) {
			continue
		}
		path := "/app-lifecycle/" + c.Name + "/" + l.path
		if get, note := in.rewrite(c, l.name, path, prober{HTTPGet: l.handler.HTTPGet, TCPSocket: l.handler.TCPSocket}); get != nil {
			l.handler.HTTPGet, l.handler.TCPSocket = get, nil
			found[path] = note
		}
	}
}

// rewrite returns the request that stands in for a probe, and the probe with
// its port resolved; nil if the probe stays as it is: one that runs a program,
// one that goes to another host, one that goes to the proxy. What the API server would
// fill in is filled in, so that podseal inject, which reads what it hasn't seen yet,
// gives what the webhook gives.
func (in *injection) rewrite(c *corev1.Container, name, path string, p prober) (*corev1.HTTPGetAction, prober) {
	get := &corev1.HTTPGetAction{Path: path, Port: intstr.FromInt32(statsPort), Scheme: corev1.URISchemeHTTP}
	switch {
	case p.HTTPGet != nil:
		if p.HTTPGet.Host != "" || isProxyPort(p.HTTPGet.Port) {
			return nil, p
		}
		original := *p.HTTPGet
		original.Port = in.resolve(c, name, original.Port)
		original.Path, original.Scheme = cmp.Or(original.Path, "/"), cmp.Or(original.Scheme, corev1.URISchemeHTTP)
		get.HTTPHeaders = original.HTTPHeaders
		p.HTTPGet = &original
	case p.TCPSocket != nil:
		if p.TCPSocket.Host != "" || isProxyPort(p.TCPSocket.Port) {
			return nil, p
		}
		p.TCPSocket = &corev1.TCPSocketAction{Port: in.resolve(c, name, p.TCPSocket.Port)}
	case p.GRPC != nil:
		in.resolve(c, name, intstr.FromInt32(p.GRPC.Port))
		p.GRPC = p.GRPC.DeepCopy()
		if p.GRPC.Service == nil {
			p.GRPC.Service = new("")
		}
	default:
		return nil, p
	}
	return get, p
}

func isProxyPort(port intstr.IntOrString) bool {
	return port.Type == intstr.Int && (port.IntVal == statsPort || port.IntVal == healthPort)
}

// resolve turns the name of a port into its number. A name that the container
// doesn't have would make a pod that never gets ready (contract 5.40), and a bad
// number would no longer be seen by the API server: the probe that it validates
// is the rewritten one.
func (in *injection) resolve(c *corev1.Container, probe string, port intstr.IntOrString) intstr.IntOrString {
	const most = 65535
	if port.Type == intstr.Int {
		if port.IntVal < 1 || port.IntVal > most {
			in.fault("container %q: %s: port %d: write a port from 1 to %d, or the name of one", c.Name, probe, port.IntVal, most)
		}
		return port
	}
	for _, p := range c.Ports {
		if p.Name == port.StrVal {
			return intstr.FromInt32(p.ContainerPort)
		}
	}
	n, err := strconv.ParseUint(port.StrVal, 10, 16)
	if err != nil || n == 0 {
		in.fault("container %q: %s: port %q is none of the container's named ports, so the probe could never succeed; name it in ports or write its number", c.Name, probe, port.StrVal)
	}
	return intstr.FromInt32(int32(n))
}
