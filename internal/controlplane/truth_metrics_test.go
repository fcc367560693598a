package controlplane

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	corev1 "k8s.io/api/core/v1"

	"podseal.io/podseal/internal/edges"
	"podseal.io/podseal/internal/xds"
)

func TestTruthMetrics(t *testing.T) {
	v := adviceView(edges.Plaintext, "cron")
	v.Proxies[0].Config, v.Proxies[0].NotAfter = ConfigSynced, epoch.Add(90*time.Minute)
	v.Pods = append(v.Pods, PodView{Namespace: "shop", Name: "old", Workload: "old"}, PodView{Namespace: "old", Name: "x", Workload: "cron"})
	now, err := epoch, error(nil)
	m := newTruthMetrics(func(context.Context, string, []string) (*View, error) { return v, err }, heldPods(fakeClient(heldPod("late", "n", "rs"), heldPod("over", "n", "rs", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }))), func() []xds.PeerStatus {
		return []xds.PeerStatus{{Types: map[string]xds.TypeStatus{"a": {Waiting: true, LastSent: epoch.Add(-7 * time.Second)}, "b": {LastSent: epoch.Add(-time.Hour)}}}}
	}, func() time.Time { return now })
	want := `
# HELP podseal_config_lag_seconds How long the slowest proxy has not acknowledged what it was sent.
# TYPE podseal_config_lag_seconds gauge
podseal_config_lag_seconds 7
# HELP podseal_identity_minutes_left Minutes until the first proxy's certificate ends, if the control plane stayed away from now on.
# TYPE podseal_identity_minutes_left gauge
podseal_identity_minutes_left 90
# HELP podseal_plaintext_connections_total Connections without the mesh's mutual TLS to pods of the mesh, by who talks to whom; of the rarer ones the sum as (others).
# TYPE podseal_plaintext_connections_total counter
podseal_plaintext_connections_total{destination="api",destination_namespace="shop",security="plaintext",source="cron",source_namespace="old"} 3
# HELP podseal_pods_capture Pods of the mesh: in place, since their capture was checked before the application could start, or held, as nothing captures them.
# TYPE podseal_pods_capture gauge
podseal_pods_capture{namespace="shop",state="held"} 1
podseal_pods_capture{namespace="shop",state="in place"} 0
# HELP podseal_pods_without_proxy Pods without a proxy in namespaces whose new pods get one.
# TYPE podseal_pods_without_proxy gauge
podseal_pods_without_proxy{namespace="shop"} 1
# HELP podseal_proxies Proxies, by what became of their configuration.
# TYPE podseal_proxies gauge
podseal_proxies{config="NOT CONNECTED"} 0
podseal_proxies{config="OUTDATED"} 0
podseal_proxies{config="REJECTED"} 0
podseal_proxies{config="STALE"} 0
podseal_proxies{config="SYNCED"} 1
`
	if err := testutil.CollectAndCompare(m, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
	// However many callers there are, the series are bounded and nothing is lost.
	var many []string
	for i := range 500 {
		many = append(many, fmt.Sprint("c", i))
	}
	v, now = adviceView(edges.ForeignTLS, many...), epoch.Add(metricsFor)
	if n := testutil.CollectAndCount(m, "podseal_plaintext_connections_total"); n != maxPlaintextSeries+1 {
		t.Errorf("%d series", n)
	}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(m)
	families, gatherErr := registry.Gather()
	if gatherErr != nil {
		t.Fatal(gatherErr)
	}
	var sum float64
	for _, f := range families {
		if f.GetName() == "podseal_plaintext_connections_total" {
			for _, x := range f.GetMetric() {
				sum += x.GetCounter().GetValue()
			}
		}
	}
	if sum != 1500 {
		t.Errorf("%v connections", sum)
	}
	err, now = errors.New("no"), now.Add(metricsFor)
	if _, gatherErr := registry.Gather(); gatherErr == nil {
		t.Error("what can't be read looks like nothing")
	}
}
