package controlplane

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"istio.io/api/label"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"podseal.io/podseal/internal/edges"
	"podseal.io/podseal/internal/inject"
	"podseal.io/podseal/internal/report"
	"podseal.io/podseal/internal/version"
	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/xds"
)

// The parts of a [View] that can be asked for.
const (
	PartPods    = "pods"
	PartProxies = "proxies"
	PartEdges   = "edges"
	PartDetails = "details" // more of the pods; only with PartPods
)

var viewParts = []string{PartPods, PartProxies, PartEdges, PartDetails}

// View is what is known of the mesh. Each proxy is connected to one replica, so
// proxies and edges of all replicas belong together.
type View struct {
	Replica string         `json:"replica"`
	Version string         `json:"version"`
	Now     time.Time      `json:"now"`
	Pods    []PodView      `json:"pods,omitempty"`
	Proxies []ProxyView    `json:"proxies,omitempty"`
	Edges   []edges.Report `json:"edges,omitempty"`
	// Started is since when the replica hears of proxies; of several the latest.
	Started time.Time `json:"started,omitzero"`
	// Peers are the other replicas, whose knowledge is in it but for those with an
	// error. Nil means that none was asked, as by older versions.
	Peers []PeerView `json:"peers,omitzero"`
	// Injected are the namespaces whose new pods get a proxy; of PartDetails.
	Injected []string `json:"injected,omitempty"`
}

// PodView is a pod as proxies are told of it.
type PodView struct {
	Name      string            `json:"name"`
	Namespace string            `json:"namespace"`
	Workload  string            `json:"workload"`
	Node      string            `json:"node,omitempty"`
	Addresses []netip.Addr      `json:"addresses,omitempty"`
	Identity  string            `json:"identity"`
	Mesh      bool              `json:"mesh"`           // others speak mutual TLS to it
	Mode      string            `json:"mode,omitempty"` // of ports without one of their own
	PortModes map[uint16]string `json:"port_modes,omitempty"`
	Ports     []PortView        `json:"ports,omitempty"`
	Services  []string          `json:"services,omitempty"` // of its namespace, that lead to it
	// Of PartDetails.
	Created time.Time         `json:"created,omitzero"`
	Labels  map[string]string `json:"labels,omitempty"`
	Probed  []uint16          `json:"probed,omitempty"` // where kubelet's probes go to, not rewritten
}

// PortView is a port that a service leads to.
type PortView struct {
	Port     uint16 `json:"port"`
	Protocol string `json:"protocol"`
	Service  string `json:"service"` // FQDN:port
	Mode     string `json:"mode"`
}

// What becomes of the configuration that a proxy is sent.
const (
	ConfigSynced       = "SYNCED"        // it has all, and acknowledged it
	ConfigStale        = "STALE"         // it has not acknowledged the newest yet
	ConfigRejected     = "REJECTED"      // it refuses some of it; what it had before stays in force
	ConfigOutdated     = "OUTDATED"      // it is of an older version, and doesn't ask for all
	ConfigNotConnected = "NOT CONNECTED" // it works with the last that it had
)

// ProxyView is one proxy.
type ProxyView struct {
	Pod         string    `json:"pod"`
	Namespace   string    `json:"namespace"`
	Workload    string    `json:"workload,omitempty"`
	Node        string    `json:"node,omitempty"`
	Version     string    `json:"version,omitempty"`
	Config      string    `json:"config"`
	Rejected    []string  `json:"rejected,omitempty"` // names of resources
	Reason      string    `json:"reason,omitempty"`   // of the rejection
	Lacks       []string  `json:"lacks,omitempty"`    // kinds that it doesn't ask for, of OUTDATED
	Connected   time.Time `json:"connected,omitzero"`
	Gone        time.Time `json:"gone,omitzero"` // it reported, and is no longer connected
	Identity    string    `json:"identity,omitempty"`
	Serial      string    `json:"serial,omitempty"`
	NotBefore   time.Time `json:"not_before,omitzero"`
	NotAfter    time.Time `json:"not_after,omitzero"`
	Bundle      string    `json:"bundle,omitempty"`
	Connections uint32    `json:"connections"`
	NotReady    string    `json:"not_ready,omitempty"`
	Draining    bool      `json:"draining,omitempty"`
	Started     time.Time `json:"started,omitzero"`
	Reports     bool      `json:"reports"` // its edges are known
	// LoopbackSegment is how much the pod's TCP hands over lo in one piece at most,
	// in bytes: between application and proxy. 0 is unknown.
	LoopbackSegment uint32 `json:"loopback_segment_bytes,omitempty"`
}

// viewer makes views of the mesh.
type viewer struct {
	cache   client.Reader
	store   *xds.Store
	peers   func() []xds.PeerStatus
	reports func() []report.Report
	replica string
	started time.Time
	now     func() time.Time
}

// view shows the parts that are asked for, all of them if none is, of one
// namespace or of all.
func (v *viewer) view(ctx context.Context, namespace string, parts []string) (*View, error) {
	want := func(part string) bool { return len(parts) == 0 || slices.Contains(parts, part) }
	out := &View{Replica: v.replica, Version: version.Version, Now: v.now(), Started: v.started}
	if want(PartPods) {
		var err error
		if out.Pods, err = v.pods(namespace); err != nil {
			return nil, err
		}
	}
	var pods corev1.PodList
	if err := v.cache.List(ctx, &pods, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	known := make(map[string]*corev1.Pod, len(pods.Items))
	for i := range pods.Items {
		known[pods.Items[i].Namespace+"/"+pods.Items[i].Name] = &pods.Items[i]
	}
	if slices.Contains(parts, PartDetails) {
		if err := v.details(ctx, out, known); err != nil {
			return nil, err
		}
	}
	if want(PartProxies) {
		out.Proxies = v.proxies(namespace, known)
	}
	if want(PartEdges) {
		where, err := readPlaces(ctx, v.cache)
		if err != nil {
			return nil, err
		}
		out.Edges = v.edges(namespace, known, where.resolve)
	}
	return out, nil
}

func (v *viewer) pods(namespace string) ([]PodView, error) {
	var out []PodView
	services, err := v.services()
	if err != nil {
		return nil, err
	}
	for _, r := range v.store.Resources(wire.TypeWorkload) {
		if namespace != "" && !strings.HasPrefix(r.Name, namespace+"/") {
			continue
		}
		w, err := wire.ParseWorkload(r.Body)
		if err != nil {
			return nil, err
		}
		p := PodView{
			Name: w.Name, Namespace: w.Namespace, Workload: w.WorkloadName, Node: w.Node, Addresses: w.Addresses,
			Identity: w.Identity.String(), Mesh: w.Mesh, Mode: w.Modes.Port(0).String(),
			Services: services[w.UID],
		}
		for port, mode := range w.Modes.Ports {
			if p.PortModes == nil {
				p.PortModes = map[uint16]string{}
			}
			p.PortModes[port] = mode.String()
		}
		for _, port := range w.Ports {
			p.Ports = append(p.Ports, PortView{
				Port: port.Target, Protocol: port.Protocol.String(), Mode: w.Modes.Port(port.Target).String(),
				Service: fmt.Sprintf("%s:%d", port.ServiceHost, port.ServicePort),
			})
		}
		out = append(out, p)
	}
	return out, nil
}

// details adds what isn't told to proxies.
func (v *viewer) details(ctx context.Context, out *View, known map[string]*corev1.Pod) error {
	for i := range out.Pods {
		p := &out.Pods[i]
		if pod := known[p.Namespace+"/"+p.Name]; pod != nil {
			p.Created, p.Labels, p.Probed = pod.CreationTimestamp.Time, pod.Labels, probed(pod)
		}
	}
	var namespaces corev1.NamespaceList
	if err := v.cache.List(ctx, &namespaces, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list namespaces: %w", err)
	}
	for i := range namespaces.Items {
		if ns := &namespaces.Items[i]; ns.Labels[inject.NamespaceLabel] == "enabled" || (ns.Labels[inject.NamespaceLabel] == "" && ns.Labels[label.IoIstioRev.Name] != "") {
			out.Injected = append(out.Injected, ns.Name)
		}
	}
	return nil
}

// probed are the ports that kubelet's probes go to; those that were rewritten go
// to the proxy (contract 5.35).
func probed(pod *corev1.Pod) []uint16 {
	var out []uint16
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		for _, probe := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
			if n := probedPort(c, probe); n != 0 && !slices.Contains(out, n) {
				out = append(out, n)
			}
		}
	}
	return out
}

func probedPort(c *corev1.Container, probe *corev1.Probe) uint16 {
	if probe == nil || probe.HTTPGet == nil {
		return 0 // TCP probes send nothing, those of gRPC are rewritten alike
	}
	n := probe.HTTPGet.Port.IntVal
	for _, p := range c.Ports {
		if probe.HTTPGet.Port.StrVal != "" && p.Name == probe.HTTPGet.Port.StrVal {
			n = p.ContainerPort
		}
	}
	if n < 1 || n > 65535 || n == 15020 {
		return 0
	}
	return uint16(n)
}

// services are the names of those that lead to each pod.
func (v *viewer) services() (map[string][]string, error) {
	out := map[string][]string{}
	for _, r := range v.store.Resources(wire.TypeService) {
		s, err := wire.ParseService(r.Body)
		if err != nil {
			return nil, err
		}
		for _, e := range s.Endpoints {
			if e.Workload != "" && !slices.Contains(out[e.Workload], s.Name) {
				out[e.Workload] = append(out[e.Workload], s.Name)
			}
		}
	}
	return out, nil
}

// proxies joins what the streams for configuration and the reports say.
func (v *viewer) proxies(namespace string, known map[string]*corev1.Pod) []ProxyView {
	all := map[string]*ProxyView{}
	find := func(ns, pod string) *ProxyView {
		p := all[ns+"/"+pod]
		if p == nil {
			p = &ProxyView{Pod: pod, Namespace: ns, Config: ConfigNotConnected}
			if k := known[ns+"/"+pod]; k != nil {
				p.Workload, p.Node = workloadOf(k).Name, k.Spec.NodeName
			}
			all[ns+"/"+pod] = p
		}
		return p
	}
	for _, peer := range v.peers() {
		ns, pod, ok := podOf(peer.Node.ID)
		if !ok || (namespace != "" && ns != namespace) {
			continue
		}
		p := find(ns, pod)
		if p.Connected.After(peer.Connected) {
			continue // an older stream that has not ended yet
		}
		p.Connected, p.Identity, p.Version = peer.Connected, peer.Peer, peer.Node.Metadata["VERSION"]
		p.Config, p.Rejected, p.Reason = v.config(peer)
		if p.Lacks = v.lacks(peer); len(p.Lacks) > 0 && p.Config != ConfigRejected {
			p.Config = ConfigOutdated
		}
	}
	for _, r := range v.reports() {
		if namespace != "" && r.Pod.Namespace != namespace {
			continue
		}
		if _, here := known[r.Pod.Namespace+"/"+r.Pod.Name]; !here && !r.Gone.IsZero() {
			continue // the pod is no more; its edges are what is left
		}
		p := find(r.Pod.Namespace, r.Pod.Name)
		said := r.Proxy
		p.Reports, p.Gone, p.Identity, p.Version = true, r.Gone, r.Pod.Identity, said.GetVersion()
		p.Serial, p.Bundle, p.Connections = said.GetSerial(), said.GetBundle(), said.GetConnections()
		p.NotBefore, p.NotAfter, p.Started = unix(said.GetNotBefore()), unix(said.GetNotAfter()), unix(said.GetStarted())
		p.NotReady, p.Draining = said.GetNotReady(), said.GetDraining()
		p.LoopbackSegment = said.GetLoopbackSegmentBytes()
	}
	out := make([]ProxyView, 0, len(all))
	for _, p := range all {
		out = append(out, *p)
	}
	slices.SortFunc(out, func(a, b ProxyView) int { return strings.Compare(a.Namespace+"/"+a.Pod, b.Namespace+"/"+b.Pod) })
	return out
}

// config says how far a proxy is with what it is sent.
func (v *viewer) config(peer xds.PeerStatus) (state string, rejected []string, reason string) {
	state = ConfigSynced
	for _, typeURL := range wire.Types() {
		t, asked := peer.Types[typeURL]
		if (!asked && slices.Contains(asNeeded, typeURL)) || (asked && t.Generation < v.store.Generation(typeURL)) {
			state = ConfigStale
		}
		rejected = append(rejected, t.Rejected...)
		if len(t.Rejected) > 0 {
			reason = t.NackText
		}
	}
	if len(rejected) > 0 {
		state = ConfigRejected
	}
	return state, rejected, reason
}

// asNeeded are what every version asks for.
var asNeeded = []string{wire.TypeMesh, wire.TypeWorkload, wire.TypeService}

// asksWithin is how long a proxy may take to ask for all that it wants.
const asksWithin = 10 * time.Second

// lacks are the kinds that a proxy doesn't ask for: it doesn't know them.
func (v *viewer) lacks(peer xds.PeerStatus) []string {
	if v.now().Sub(peer.Connected) < asksWithin || len(peer.Types) == 0 {
		return nil
	}
	var out []string
	for _, typeURL := range wire.Types() {
		if _, asked := peer.Types[typeURL]; !asked {
			out = append(out, wire.KindOf(typeURL))
		}
	}
	return out
}

// edges resolves what proxies reported. Of a namespace it shows what its pods
// say, and what others say of its pods.
func (v *viewer) edges(namespace string, known map[string]*corev1.Pod, resolve edges.Resolver) []edges.Report {
	out := []edges.Report{}
	for _, r := range v.reports() {
		e := edges.Report{
			Pod: r.Pod.Namespace + "/" + r.Pod.Name, Edges: r.Edges,
			Workload: edges.Peer{Kind: edges.KindWorkload, Namespace: r.Pod.Namespace, Name: r.Pod.Name},
		}
		if k := known[e.Pod]; k != nil {
			e.Workload, e.Node = workloadOf(k), k.Spec.NodeName
		}
		e.Resolve(resolve)
		if namespace != "" && r.Pod.Namespace != namespace {
			e.Edges = slices.DeleteFunc(e.Edges, func(x edges.Edge) bool { return x.Peer.Namespace != namespace })
			if len(e.Edges) == 0 {
				continue
			}
		}
		out = append(out, e)
	}
	return out
}

func unix(seconds int64) time.Time {
	if seconds == 0 {
		return time.Time{}
	}
	return time.Unix(seconds, 0).UTC()
}

// podOf reads the pod out of a node ID: `sidecar~<ip>~<pod>.<ns>~<domain>`.
func podOf(nodeID string) (ns, pod string, ok bool) {
	parts := strings.Split(nodeID, "~")
	if len(parts) != 4 {
		return "", "", false
	}
	i := strings.LastIndex(parts[2], ".")
	if i < 0 {
		return "", "", false
	}
	return parts[2][i+1:], parts[2][:i], true
}
