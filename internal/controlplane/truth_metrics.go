package controlplane

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"podseal.io/podseal/internal/edges"
	"podseal.io/podseal/internal/xds"
)

// maxPlaintextSeries bounds the edges that are named in metrics; the rest is one.
const maxPlaintextSeries = 200

// metricsFor is how long what was read for one scrape serves the next.
const metricsFor = 5 * time.Second

// truthMetrics are figures of the mesh as this replica knows it, read when somebody
// scrapes: those of all replicas add up, but for the minutes, of which the least count.
type truthMetrics struct {
	view  func(ctx context.Context, namespace string, parts []string) (*View, error)
	held  func(ctx context.Context) (map[string]int, error) // pods that wait uncaptured, by namespace
	peers func() []xds.PeerStatus
	now   func() time.Time

	plaintext, proxies, without, capture, minutes, lag *prometheus.Desc

	mu   sync.Mutex
	at   time.Time
	last []prometheus.Metric
}

// heldPods counts, by namespace, the pods that are held since nothing captures them.
func heldPods(c client.Reader) func(ctx context.Context) (map[string]int, error) {
	return func(ctx context.Context) (map[string]int, error) {
		var pods corev1.PodList
		if err := c.List(ctx, &pods); err != nil {
			return nil, fmt.Errorf("list pods: %w", err)
		}
		n := map[string]int{}
		for i := range pods.Items {
			if p := &pods.Items[i]; held(p) {
				n[p.Namespace]++
			}
		}
		return n, nil
	}
}

func newTruthMetrics(view func(ctx context.Context, namespace string, parts []string) (*View, error), held func(ctx context.Context) (map[string]int, error), peers func() []xds.PeerStatus, now func() time.Time) *truthMetrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &truthMetrics{
		view: view, held: held, peers: peers, now: now,
		plaintext: desc("podseal_plaintext_connections_total", "Connections without the mesh's mutual TLS to pods of the mesh, by who talks to whom; of the rarer ones the sum as (others).",
			"source_namespace", "source", "destination_namespace", "destination", "security"),
		proxies: desc("podseal_proxies", "Proxies, by what became of their configuration.", "config"),
		without: desc("podseal_pods_without_proxy", "Pods without a proxy in namespaces whose new pods get one.", "namespace"),
		capture: desc("podseal_pods_capture", "Pods of the mesh: in place, since their capture was checked before the application could start, or held, as nothing captures them.", "namespace", "state"),
		minutes: desc("podseal_identity_minutes_left", "Minutes until the first proxy's certificate ends, if the control plane stayed away from now on."),
		lag:     desc("podseal_config_lag_seconds", "How long the slowest proxy has not acknowledged what it was sent."),
	}
}

// Describe implements prometheus.Collector.
func (m *truthMetrics) Describe(into chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.plaintext, m.proxies, m.without, m.capture, m.minutes, m.lag} {
		into <- d
	}
}

// Collect implements prometheus.Collector.
func (m *truthMetrics) Collect(into chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now := m.now(); now.Sub(m.at) >= metricsFor || now.Before(m.at) {
		m.at, m.last = now, m.read()
	}
	for _, x := range m.last {
		into <- x
	}
}

func (m *truthMetrics) read() []prometheus.Metric {
	ctx, cancel := context.WithTimeout(context.Background(), metricsFor)
	defer cancel()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) prometheus.Metric {
		return prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	out := []prometheus.Metric{gauge(m.lag, m.slowest().Seconds())}
	v, err := m.view(ctx, "", StrictParts())
	if err != nil {
		return append(out, prometheus.NewInvalidMetric(m.proxies, err))
	}
	states := map[string]int{ConfigSynced: 0, ConfigStale: 0, ConfigRejected: 0, ConfigOutdated: 0, ConfigNotConnected: 0}
	var first time.Time
	for i := range v.Proxies {
		p := &v.Proxies[i]
		states[p.Config]++
		if !p.NotAfter.IsZero() && (first.IsZero() || p.NotAfter.Before(first)) {
			first = p.NotAfter
		}
	}
	for state, n := range states {
		out = append(out, gauge(m.proxies, float64(n), state))
	}
	if !first.IsZero() {
		out = append(out, gauge(m.minutes, max(first.Sub(m.now()).Minutes(), 0)))
	}
	for ns, n := range m.unproxied(v) {
		out = append(out, gauge(m.without, float64(n), ns))
	}
	waiting, err := m.held(ctx)
	if err != nil {
		return append(out, prometheus.NewInvalidMetric(m.capture, err))
	}
	captured := map[string]int{}
	for i := range v.Pods {
		if p := &v.Pods[i]; p.Mesh {
			captured[p.Namespace]++
		}
	}
	for ns, n := range waiting {
		captured[ns] = max(captured[ns]-n, 0)
	}
	for ns, n := range captured {
		out = append(out, gauge(m.capture, float64(n), ns, "in place"), gauge(m.capture, float64(waiting[ns]), ns, "held"))
	}
	return append(out, m.edges(v)...)
}

// unproxied counts, by namespace, the pods without a proxy where new ones get one.
func (m *truthMetrics) unproxied(v *View) map[string]int {
	without := map[string]int{}
	for i := range v.Pods {
		if p := &v.Pods[i]; slices.Contains(v.Injected, p.Namespace) {
			without[p.Namespace] += map[bool]int{false: 1}[p.Mesh]
		}
	}
	return without
}

// slowest is the age of the oldest answer that a proxy owes.
func (m *truthMetrics) slowest() time.Duration {
	var slowest time.Duration
	for _, p := range m.peers() {
		for _, t := range p.Types {
			if t.Waiting {
				slowest = max(slowest, m.now().Sub(t.LastSent))
			}
		}
	}
	return slowest
}

// insecure is one series.
type insecure struct {
	labels [5]string
	n      uint64
}

func (m *truthMetrics) edges(v *View) []prometheus.Metric {
	mesh := map[[2]string]bool{}
	for i := range v.Pods {
		if v.Pods[i].Mesh {
			mesh[[2]string{v.Pods[i].Namespace, v.Pods[i].Workload}] = true
		}
	}
	sums := map[[5]string]uint64{}
	graph := edges.Build(v.Edges)
	for i := range graph {
		l := &graph[i]
		if l.OwnPort || !mesh[[2]string{l.Destination.Namespace, l.Destination.Name}] {
			continue
		}
		for _, s := range []edges.Security{edges.Plaintext, edges.ForeignTLS} {
			if n, _ := l.Of(func(x *edges.Share) bool { return x.Security == s }); n > 0 {
				sums[[5]string{l.Source.Namespace, l.Source.String(), l.Destination.Namespace, l.Destination.Name, s.String()}] += n
			}
		}
	}
	all := make([]insecure, 0, len(sums))
	for labels, n := range sums {
		all = append(all, insecure{labels, n})
	}
	slices.SortFunc(all, func(a, b insecure) int {
		return cmp.Or(cmp.Compare(b.n, a.n), slices.Compare(a.labels[:], b.labels[:]))
	})
	others := map[string]uint64{}
	for len(all) > maxPlaintextSeries {
		last := all[len(all)-1]
		others[last.labels[4]] += last.n
		all = all[:len(all)-1]
	}
	for security, n := range others {
		all = append(all, insecure{[5]string{"", "(others)", "", "(others)", security}, n})
	}
	out := make([]prometheus.Metric, 0, len(all))
	for _, x := range all {
		out = append(out, prometheus.MustNewConstMetric(m.plaintext, prometheus.CounterValue, float64(x.n), x.labels[:]...))
	}
	return out
}
