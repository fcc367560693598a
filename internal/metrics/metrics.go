// Package metrics names what Podseal counts, as dashboards for Istio expect it.
//
// The traffic metrics have Istio's names and labels (contract 7.2-7.6): what is
// not known is the literal "unknown", principals are written with `spiffe://`,
// and connection_security_policy is said by the destination only. Metrics of our
// own begin with podseal_. A connection resolves its label values once, with
// [Set.TCP] or [Set.HTTP], and counts without looking anything up.
package metrics

import (
	"cmp"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Peer is one side of a connection; empty fields are unknown.
type Peer struct {
	Workload, Namespace, Principal      string
	App, Version                        string
	CanonicalService, CanonicalRevision string
	Cluster                             string
}

// Labels are what a connection or request is counted under (contract 7.3).
type Labels struct {
	Reporter            string // source or destination
	Source, Destination Peer
	Service             string // FQDN of the destination service
	ServiceName         string
	ServiceNamespace    string
	Protocol            string // http, grpc or tcp
	Flags               string // why it went wrong; "-" when it did not
	Security            string // mutual_tls, none or unknown
}

var labelNames = []string{
	"reporter",
	"source_workload", "source_workload_namespace", "source_principal", "source_app", "source_version",
	"source_canonical_service", "source_canonical_revision", "source_cluster",
	"destination_workload", "destination_workload_namespace", "destination_principal", "destination_app", "destination_version",
	"destination_canonical_service", "destination_canonical_revision", "destination_cluster",
	"destination_service", "destination_service_name", "destination_service_namespace",
	"request_protocol", flagsName, "connection_security_policy",
}

// flagsName is the label that a request has when it is over.
const flagsName = "response_flags"

// messageNames are those of what is counted before.
var messageNames = slices.DeleteFunc(slices.Clone(labelNames), func(name string) bool { return name == flagsName })

// requestNames follow labelNames in the request metrics.
var requestNames = append(slices.Clip(labelNames), "response_code", "grpc_response_status")

// bounds are those of the buckets of every histogram of Envoy's: milliseconds, and
// bytes.
var bounds = []float64{0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000, 3600000}

func (p Peer) values() []string {
	all := []string{p.Workload, p.Namespace, p.Principal, p.App, p.Version, p.CanonicalService, p.CanonicalRevision, p.Cluster}
	for i, v := range all {
		all[i] = cmp.Or(v, "unknown")
	}
	return all
}

func (l Labels) values() []string {
	all := make([]string, 0, len(requestNames))
	all = append(all, l.Reporter)
	all = append(all, l.Source.values()...)
	all = append(all, l.Destination.values()...)
	for _, v := range []string{l.Service, l.ServiceName, l.ServiceNamespace, l.Protocol} {
		all = append(all, cmp.Or(v, "unknown"))
	}
	return append(all, cmp.Or(l.Flags, "-"), cmp.Or(l.Security, "unknown"))
}

// Set holds the metrics of one proxy and the registry that they are read from.
type Set struct {
	registry *prometheus.Registry

	opened, closed, sent, received *prometheus.CounterVec
	tcp                            sync.Map // Labels → *TCP; as many as there are series, which stay anyway
	requests                       *prometheus.CounterVec
	requestMsgs, responseMsgs      *prometheus.CounterVec
	durations                      *prometheus.HistogramVec
	requestSizes, responseSizes    *prometheus.HistogramVec
	refused                        *prometheus.CounterVec
	scrapes                        prometheus.Counter
	open                           *prometheus.GaugeVec
	handshakes                     prometheus.Histogram
	notAfter                       atomic.Int64 // Unix seconds; 0 before the first certificate
	asked, denied, files           atomic.Int64 // certificates asked for, in vain, and files of keys and roots that were of no use
}

// New makes the metrics of a proxy of this version. now is asked whenever the
// metrics are read.
func New(version string, now func() time.Time) *Set {
	counter := func(name, help string, labels []string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	histogram := func(name, help string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: bounds}, requestNames)
	}
	s := &Set{
		registry:     prometheus.NewRegistry(),
		opened:       counter("istio_tcp_connections_opened_total", "Connections opened.", labelNames),
		closed:       counter("istio_tcp_connections_closed_total", "Connections closed.", labelNames),
		sent:         counter("istio_tcp_sent_bytes_total", "Bytes sent to the client.", labelNames),
		received:     counter("istio_tcp_received_bytes_total", "Bytes received from the client.", labelNames),
		requests:     counter("istio_requests_total", "HTTP requests answered.", requestNames),
		requestMsgs:  counter("istio_request_messages_total", "Messages of gRPC received from clients.", messageNames),
		responseMsgs: counter("istio_response_messages_total", "Messages of gRPC sent to clients.", messageNames),
		durations:    histogram("istio_request_duration_milliseconds", "Time from request to the end of its response."),
		requestSizes: histogram("istio_request_bytes", "Size of requests, head and body."), responseSizes: histogram("istio_response_bytes", "Size of responses, head and body."),
		refused:    counter("podseal_connections_refused_total", "Connections refused or cut, and requests denied, by reason.", []string{"direction", "reason"}),
		open:       prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "podseal_connections_open", Help: "Connections open now."}, []string{"direction"}),
		scrapes:    prometheus.NewCounter(prometheus.CounterOpts{Name: "podseal_application_scrapes_failed_total", Help: "Times that the application's own metrics could not be read."}),
		handshakes: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "podseal_handshake_seconds", Help: "Time that mutual TLS handshakes took.", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14)}),
	}
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "istio_build", Help: "Which build this is."}, []string{"component", "tag"})
	build.WithLabelValues("proxy", version).Set(1)
	expiry := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "podseal_certificate_expiry_timestamp_seconds", Help: "When the certificate in use expires, in Unix time; 0 before the first.",
	}, func() float64 { return float64(s.notAfter.Load()) })
	s.registry.MustRegister(s.opened, s.closed, s.sent, s.received, s.requests, s.requestMsgs, s.responseMsgs, s.durations, s.requestSizes, s.responseSizes, s.refused, s.open, s.scrapes, s.handshakes,
		build, expiry, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	s.registry.MustRegister(s.agent(now)...)
	return s
}

// agent are what Istio's agent counts, each under the name that it has there and, as
// scrapers of port 15020 know it, with the prefix of the agent (contract 7.15).
func (s *Set) agent(now func() time.Time) (all []prometheus.Collector) {
	csr := prometheus.Labels{"request_type": "csr"}
	for _, prefix := range []string{"", "istio_agent_"} {
		expiry := prometheus.GaugeOpts{Name: prefix + "cert_expiry_seconds", Help: "Seconds until the certificate in use expires."}
		if prefix != "" {
			expiry.ConstLabels = prometheus.Labels{"resource_name": "default"}
		}
		all = append(all, prometheus.NewGaugeFunc(expiry, func() float64 {
			if end := s.notAfter.Load(); end != 0 {
				return float64(end - now().Unix())
			}
			return 0
		}))
		for _, c := range []struct {
			name, help string
			labels     prometheus.Labels
			count      *atomic.Int64
		}{
			{"num_outgoing_requests", "Certificates asked for.", csr, &s.asked},
			{"num_failed_outgoing_requests", "Certificates asked for in vain.", csr, &s.denied},
			{"num_file_secret_failures_total", "Times that files with keys or roots, which a DestinationRule names, were of no use.", nil, &s.files},
		} {
			all = append(all, prometheus.NewCounterFunc(prometheus.CounterOpts{Name: prefix + c.name, Help: c.help, ConstLabels: c.labels}, func() float64 { return float64(c.count.Load()) }))
		}
	}
	return all
}

// CertificateAsked counts a request for a certificate, and how it ended.
func (s *Set) CertificateAsked(err error) {
	s.asked.Add(1)
	if err != nil {
		s.denied.Add(1)
	}
}

// FileSecretFailed counts that files which a DestinationRule names were of no use.
func (s *Set) FileSecretFailed() { s.files.Add(1) }

// Handler answers with all metrics in the text format.
func (s *Set) Handler() http.Handler {
	return promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{})
}

// CertificateExpires says when the certificate now in use ends.
func (s *Set) CertificateExpires(at time.Time) { s.notAfter.Store(at.Unix()) }

// Refused counts a connection that was refused or cut, or a request that was
// denied. direction is inbound or outbound.
func (s *Set) Refused(direction, reason string) { s.refused.WithLabelValues(direction, reason).Inc() }

// Open is the gauge of open connections of a direction.
func (s *Set) Open(direction string) prometheus.Gauge { return s.open.WithLabelValues(direction) }

// ScrapeFailed counts that the application's own metrics could not be read.
func (s *Set) ScrapeFailed() { s.scrapes.Inc() }

// Handshake counts one mutual TLS handshake that succeeded.
func (s *Set) Handshake(took time.Duration) { s.handshakes.Observe(took.Seconds()) }

// TCP counts one connection that is carried as bytes.
type TCP struct{ opened, closed, sent, received prometheus.Counter }

// TCP resolves the counters of a connection and counts it as opened.
func (s *Set) TCP(l Labels) *TCP {
	known, _ := s.tcp.Load(l)
	t, ok := known.(*TCP)
	if !ok {
		v := l.values()
		t = &TCP{s.opened.WithLabelValues(v...), s.closed.WithLabelValues(v...), s.sent.WithLabelValues(v...), s.received.WithLabelValues(v...)}
		s.tcp.Store(l, t)
	}
	t.opened.Inc()
	return t
}

// Closed counts the connection as closed, with what it carried.
func (t *TCP) Closed(sent, received int64) {
	t.sent.Add(float64(sent))
	t.received.Add(float64(received))
	t.closed.Inc()
}

// HTTP counts the requests of one connection. It is not safe for concurrent use.
type HTTP struct {
	set    *Set
	values []string
	known  map[outcome]answered

	sends, gets prometheus.Counter // messages; nil before the first

	last       outcome
	lastAnswer answered // of last; zero before
}

type outcome struct {
	code        int
	grpc, flags string
}

type answered struct {
	count                    prometheus.Counter
	duration, request, reply prometheus.Observer
}

// HTTP prepares to count requests under these labels.
func (s *Set) HTTP(l Labels) *HTTP { return &HTTP{set: s, values: l.values()} }

// Answer is how a request was answered.
type Answer struct {
	Code  int
	Flags string // Envoy's; "-" when nothing went wrong
	// GRPC is the status of a call of gRPC, "" of other requests and where there was
	// none. It comes from the application: other than the known ones are not told
	// apart.
	GRPC                        string
	Took                        time.Duration
	RequestBytes, ResponseBytes int64 // head and body
}

// Request counts one request.
func (h *HTTP) Request(r Answer) {
	if r.GRPC != "" {
		if n, err := strconv.Atoi(r.GRPC); err != nil || n < 0 || n > 16 {
			r.GRPC = "2" // UNKNOWN
		}
	}
	o := outcome{r.Code, r.GRPC, r.Flags}
	a := h.lastAnswer
	if ok := a.count != nil && h.last == o; !ok {
		a = h.answered(o)
		h.last, h.lastAnswer = o, a
	}
	a.count.Inc()
	a.duration.Observe(float64(r.Took) / float64(time.Millisecond))
	a.request.Observe(float64(r.RequestBytes))
	a.reply.Observe(float64(r.ResponseBytes))
}

// Messages counts messages of calls of gRPC as they pass. Unlike what Request counts
// they are told apart by no answer: a stream may last for long.
func (h *HTTP) Messages(requests, responses int) {
	if h.sends == nil {
		v := slices.Delete(slices.Clone(h.values), slices.Index(labelNames, flagsName), slices.Index(labelNames, flagsName)+1)
		h.sends, h.gets = h.set.requestMsgs.WithLabelValues(v...), h.set.responseMsgs.WithLabelValues(v...)
	}
	h.sends.Add(float64(requests))
	h.gets.Add(float64(responses))
}

// answered resolves the counters of an outcome.
func (h *HTTP) answered(o outcome) answered {
	a, ok := h.known[o]
	if !ok {
		v := append(slices.Clone(h.values), strconv.Itoa(o.code), o.grpc)
		v[slices.Index(labelNames, flagsName)] = cmp.Or(o.flags, "-")
		a = answered{
			h.set.requests.WithLabelValues(v...), h.set.durations.WithLabelValues(v...),
			h.set.requestSizes.WithLabelValues(v...), h.set.responseSizes.WithLabelValues(v...),
		}
		if h.known == nil {
			h.known = map[outcome]answered{}
		}
		h.known[o] = a
	}
	return a
}
