package controlplane

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	securitypb "istio.io/api/security/v1alpha1"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"

	"podseal.io/podseal/internal/report"
	"podseal.io/podseal/internal/version"
	"podseal.io/podseal/internal/xds"
)

// counts are the control plane's metrics, by the names that alerts know
// (contract 7.15).
type counts struct {
	registry                                     *prometheus.Registry
	csr, issued, unauthenticated                 prometheus.Counter
	injections, injected, notInjected, uninjects prometheus.Counter
	validations                                  *prometheus.CounterVec
	pushes                                       prometheus.Counter
	build, convergence                           prometheus.Histogram
}

func newCounts() *counts {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	c := &counts{
		registry:        prometheus.NewRegistry(),
		csr:             counter("citadel_server_csr_count", "Certificate requests received."),
		issued:          counter("citadel_server_success_cert_issuance_count", "Certificates issued."),
		unauthenticated: counter("citadel_server_authentication_failure_count", "Certificate requests whose caller could not be authenticated."),
		injections:      counter("sidecar_injection_requests_total", "Pods looked at for injection."),
		injected:        counter("sidecar_injection_success_total", "Pods injected."),
		notInjected:     counter("sidecar_injection_failure_total", "Pods refused because they could not be injected."),
		uninjects:       counter("sidecar_injection_skip_total", "Pods left as they are."),
		validations:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "galley_validation_total", Help: "Policies looked at on admission, by what became of them."}, []string{"result"}),
		pushes:          counter("pilot_xds_pushes", "Times that something changed for proxies."),
		build: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "podseal_discovery_build_seconds", Help: "Time to turn the cluster's objects into resources for proxies.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 12),
		}),
	}
	c.convergence = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "pilot_proxy_convergence_time", Help: "Seconds from a change for proxies until one of them has acknowledged it.", Buckets: []float64{0.1, 0.5, 1, 3, 5, 10, 20, 30},
	})
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "istio_build", Help: "Which build this is."}, []string{"component", "tag"})
	info.WithLabelValues("pilot", version.Version).Set(1)
	c.registry.MustRegister(c.csr, c.issued, c.unauthenticated, c.injections, c.injected, c.notInjected, c.uninjects, c.validations, c.pushes, c.build, c.convergence, info)
	return c
}

// observe adds what is read when it is asked for.
func (c *counts) observe(a *authority, s *xds.Server, r *report.Server, now func() time.Time) {
	gauge := func(name, help string, read func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, read)
	}
	rootExpiry := func() float64 {
		issuer, err := a.Issuer()
		if err != nil {
			return 0
		}
		end := issuer.Certificate().NotAfter
		for _, r := range issuer.Bundle().Roots() {
			if r.NotAfter.Before(end) {
				end = r.NotAfter
			}
		}
		return float64(end.Unix())
	}
	c.registry.MustRegister(
		gauge("citadel_server_root_cert_expiry_timestamp", "When the first of issuer and roots expires, in Unix time; 0 without one.", rootExpiry),
		gauge("citadel_server_root_cert_expiry_seconds", "Seconds until the first of issuer and roots expires.", func() float64 {
			if end := rootExpiry(); end != 0 {
				return end - float64(now().Unix())
			}
			return 0
		}),
		gauge("podseal_root_seconds_left", "Seconds until the first of issuer and roots ends; 0 without one.", func() float64 {
			if end := rootExpiry(); end != 0 {
				return max(end-float64(now().Unix()), 0)
			}
			return 0
		}),
		gauge("podseal_revocation_list_seconds_left", "Seconds until the first of the revocation lists in force ends; +Inf if none does.", func() float64 { return a.revocationsLeft(now()) }),
		gauge("pilot_xds", "Proxies connected.", func() float64 { return float64(len(s.Peers())) }),
		gauge("podseal_edges", "Edges of all proxies that this replica keeps.", func() float64 { _, kept, _ := r.Counts(); return float64(kept) }),
		gauge("podseal_reporting_proxies", "Proxies that report their edges to this replica.", func() float64 { streams, _, _ := r.Counts(); return float64(streams) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "podseal_reports_cut_off_total", Help: "Reports that were cut off because a proxy said what none of ours says, or too much.",
		}, func() float64 { _, _, refused := r.Counts(); return float64(refused) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "podseal_matches_dropped_total", Help: "Times that a policy mattered which are not kept, as proxies told of too many.",
		}, func() float64 { return float64(r.Dropped()) }),
		gauge("podseal_bad_input", "1 while settings, a certificate authority or revocation lists can't be taken into force.", func() float64 {
			if a.Problem() != nil {
				return 1
			}
			return 0
		}),
	)
}

// converged counts a change that a proxy has acknowledged.
func (c *counts) converged(took time.Duration) { c.convergence.Observe(took.Seconds()) }

func (c *counts) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(prometheus.Gatherers{c.registry, ctrlmetrics.Registry}, promhttp.HandlerOpts{}))
	return mux
}

// countCSR counts certificate requests by what became of them.
func (c *counts) countCSR(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	res, err := next(ctx, req)
	if info.FullMethod != securitypb.IstioCertificateService_CreateCertificate_FullMethodName {
		return res, err
	}
	c.csr.Inc()
	switch status.Code(err) {
	case codes.OK:
		c.issued.Inc()
	case codes.Unauthenticated:
		c.unauthenticated.Inc()
	default:
	}
	return res, err
}
