package metrics

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func scrape(t *testing.T, s *Set) string {
	t.Helper()
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	return w.Body.String()
}

// Contract 7.2-7.6, 7.15: names, labels and what unknown values are.
func TestTrafficMetrics(t *testing.T) {
	s := New("v1", func() time.Time { return time.Unix(1000, 0) })
	s.CertificateExpires(time.Unix(1060, 0))
	l := Labels{
		Reporter: "destination", Protocol: "tcp", Security: "mutual_tls", Service: "web.shop.svc.cluster.local", ServiceName: "web", ServiceNamespace: "shop",
		Source: Peer{Workload: "client", Principal: "spiffe://cluster.local/ns/shop/sa/client"},
	}
	s.TCP(l).Closed(7, 5)
	l.Protocol = "http"
	h := s.HTTP(l)
	h.Request(Answer{Code: 200, Flags: "-", Took: 3 * time.Millisecond, RequestBytes: 100, ResponseBytes: 7000})
	h.Request(Answer{Code: 200, Flags: "-", Took: 3 * time.Millisecond, RequestBytes: 100, ResponseBytes: 7000})
	h.Request(Answer{Code: 503, Flags: "UF", Took: time.Second})
	l.Protocol = "grpc"
	calls := s.HTTP(l)
	calls.Messages(2, 0)
	calls.Messages(1, 5)
	s.Refused("inbound", "plaintext_refused")
	s.Open("inbound").Inc()
	s.Handshake(time.Millisecond)
	for _, err := range []error{nil, errors.New("no"), nil} {
		s.CertificateAsked(err)
	}
	s.FileSecretFailed()

	got := scrape(t, s)
	for _, want := range []string{
		`istio_tcp_connections_opened_total{connection_security_policy="mutual_tls",destination_app="unknown",`,
		`source_principal="spiffe://cluster.local/ns/shop/sa/client"`,
		`destination_service="web.shop.svc.cluster.local",destination_service_name="web",destination_service_namespace="shop"`,
		`reporter="destination",request_protocol="http",response_code="200",response_flags="-"`,
		`istio_request_bytes_bucket{`, `istio_response_bytes_bucket{`, `istio_request_duration_milliseconds_bucket{`,
		`istio_build{component="proxy",tag="v1"} 1`,
		`podseal_connections_refused_total{direction="inbound",reason="plaintext_refused"} 1`,
		`podseal_certificate_expiry_timestamp_seconds 1060`,
		"\ncert_expiry_seconds 60\n", `istio_agent_cert_expiry_seconds{resource_name="default"} 60`,
		`num_outgoing_requests{request_type="csr"} 3`, `num_failed_outgoing_requests{request_type="csr"} 1`, "\nnum_file_secret_failures_total 1\n",
		`istio_agent_num_outgoing_requests{request_type="csr"} 3`, `istio_agent_num_failed_outgoing_requests{request_type="csr"} 1`, "\nistio_agent_num_file_secret_failures_total 1\n",
		`podseal_connections_open{direction="inbound"} 1`,
		`podseal_handshake_seconds_count 1`,
		`istio_request_messages_total{`, `istio_response_messages_total{`,
		"go_goroutines", "process_open_fds",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s", want)
		}
	}
	for line := range strings.Lines(got) {
		if strings.HasPrefix(line, "istio_tcp_sent_bytes_total") && !strings.HasSuffix(line, " 7\n") {
			t.Errorf("sent: %s", line)
		}
		if strings.Contains(line, `"200"`) && (strings.HasPrefix(line, "istio_request_bytes_sum") && !strings.HasSuffix(line, " 200\n") || strings.HasPrefix(line, "istio_response_bytes_sum") && !strings.HasSuffix(line, " 14000\n")) {
			t.Errorf("sizes: %s", line)
		}
		if strings.HasPrefix(line, "istio_request_messages_total") && !strings.HasSuffix(line, " 3\n") || strings.HasPrefix(line, "istio_response_messages_total") && !strings.HasSuffix(line, " 5\n") {
			t.Errorf("messages: %s", line)
		}
		if strings.HasPrefix(line, "istio_requests_total") && strings.Contains(line, `"200"`) && !strings.HasSuffix(line, " 2\n") {
			t.Errorf("requests: %s", line)
		}
	}
}
