package proxy

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
)

const (
	maxProbeBody   = 10 << 10
	maxScrape      = 16 << 20
	defaultProbe   = time.Second
	longestProbe   = time.Hour
	scrapeDeadline = 10 * time.Second
	maxScrapes     = 2 // at a time, as each may hold maxScrape
)

// probers are the application's own probes by the path that the kubelet asks
// (contract 5.37).
type probers map[string]prober

// prober is one probe as it stood in the pod; exactly one of the first three is set.
type prober struct {
	HTTPGet        *httpGet   `json:"httpGet"`
	TCPSocket      *tcpSocket `json:"tcpSocket"`
	GRPC           *grpcProbe `json:"grpc"`
	TimeoutSeconds int        `json:"timeoutSeconds"`
}

type httpGet struct {
	Path        string    `json:"path"`
	Port        probePort `json:"port"`
	Scheme      string    `json:"scheme"`
	HTTPHeaders []struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	} `json:"httpHeaders"`
}

type tcpSocket struct {
	Port probePort `json:"port"`
}

type grpcProbe struct {
	Port    probePort `json:"port"`
	Service string    `json:"service"`
}

// probePort is a port number; Kubernetes may write it as text.
type probePort uint16

// UnmarshalJSON reads 80 or "80".
func (p *probePort) UnmarshalJSON(b []byte) error {
	n, err := strconv.ParseUint(strings.Trim(string(b), `"`), 10, 16)
	if err != nil || n == 0 {
		return fmt.Errorf("port %s is not a number from 1 to 65535", b)
	}
	*p = probePort(n)
	return nil
}

// parseProbers reads ISTIO_KUBE_APP_PROBERS; empty text is no probes. All faults
// are reported.
func parseProbers(b []byte) (probers, error) {
	if len(b) == 0 {
		return nil, nil
	}
	var all probers
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, fmt.Errorf("read the probes of the application: %w", err)
	}
	var faults []error
	for path, p := range all {
		kinds := 0
		for _, set := range []bool{p.HTTPGet != nil, p.TCPSocket != nil, p.GRPC != nil} {
			if set {
				kinds++
			}
		}
		if kinds != 1 {
			faults = append(faults, fmt.Errorf("probe %s has %d kinds, want one of httpGet, tcpSocket, grpc", path, kinds))
		}
		if !strings.HasPrefix(path, "/app-health/") && !strings.HasPrefix(path, "/app-lifecycle/") {
			faults = append(faults, fmt.Errorf("probe %s is under neither /app-health/ nor /app-lifecycle/", path))
		}
	}
	if len(faults) > 0 {
		return nil, fmt.Errorf("read the probes of the application: %w", errors.Join(faults...))
	}
	return all, nil
}

// serveProbe makes the application's own probe (contract 5.38): from 127.0.0.6,
// so that it isn't captured and works under STRICT.
func (p *proxy) serveProbe(w http.ResponseWriter, r *http.Request) {
	probe, ok := p.probers[r.URL.Path]
	if !ok {
		http.Error(w, "no such probe: "+strconv.Quote(r.URL.Path), http.StatusBadRequest) // contract 5.40
		return
	}
	timeout := defaultProbe
	if probe.TimeoutSeconds > 0 {
		timeout = min(time.Duration(probe.TimeoutSeconds)*time.Second, longestProbe)
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	probeBounds(w, timeout)
	var err error
	switch {
	case probe.HTTPGet != nil:
		err = p.probeHTTP(ctx, w, r, probe.HTTPGet)
	case probe.TCPSocket != nil:
		err = p.probeTCP(ctx, probe.TCPSocket)
	default:
		err = p.probeGRPC(ctx, probe.GRPC)
	}
	if err != nil {
		p.log.Debug("probe failed", slog.String("path", r.URL.Path), slog.String("error", err.Error()))
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// probeBounds gives a probe the time that its pod gives it, whatever the server's
// own bounds are, and the answer some more.
func probeBounds(w http.ResponseWriter, timeout time.Duration) {
	end := time.Now().Add(timeout + askTimeout)
	c := http.NewResponseController(w)
	// They fail only on a connection that has ended.
	_ = c.SetReadDeadline(end)
	_ = c.SetWriteDeadline(end)
}

// dialPod connects to a port of the application as inbound connections do.
func (p *proxy) dialPod(ctx context.Context, port uint16) (net.Conn, error) {
	addr := p.podAddress()
	return p.cfg.Dial(ctx, loopbackSource(addr), netip.AddrPortFrom(addr, port))
}

// probeClient speaks HTTP to a port of the application, once.
func (p *proxy) probeClient(port uint16) *http.Client {
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return p.dialPod(ctx, port) },
			DisableKeepAlives:  true,
			DisableCompression: true, // the kubelet asks for none
			//nolint:gosec // the kubelet doesn't verify either (contract 5.38)
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		},
	}
}

// probeHTTP relays the answer: status and the first of the body; a redirect is
// good enough (contract 5.38).
func (p *proxy) probeHTTP(ctx context.Context, w http.ResponseWriter, r *http.Request, probe *httpGet) error {
	scheme := "http"
	if strings.EqualFold(probe.Scheme, "https") {
		scheme = "https"
	}
	host := net.JoinHostPort(p.podAddress().String(), strconv.Itoa(int(probe.Port)))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+host+"/"+strings.TrimPrefix(probe.Path, "/"), http.NoBody)
	if err != nil {
		return fmt.Errorf("make probe: %w", err)
	}
	req.Header = r.Header.Clone()
	req.Header.Del("X-Forwarded-Client-Cert") // whoever asks here has proved nothing (contract 2.47)
	req.Host = net.JoinHostPort(hostOnly(r.Host), strconv.Itoa(int(probe.Port)))
	for _, h := range probe.HTTPHeaders {
		if strings.EqualFold(h.Name, "Host") {
			req.Host = h.Value
			continue
		}
		req.Header.Set(h.Name, h.Value)
	}
	res, err := p.probeClient(uint16(probe.Port)).Do(req)
	if err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	defer res.Body.Close()
	status := res.StatusCode
	if status >= 300 && status < 400 {
		status = http.StatusOK
	}
	w.Header().Set("Content-Type", res.Header.Get("Content-Type"))
	w.WriteHeader(status)
	_, _ = io.CopyN(w, res.Body, maxProbeBody) // shorter bodies end early, and the kubelet may hang up
	return nil
}

func (p *proxy) probeTCP(ctx context.Context, probe *tcpSocket) error {
	c, err := p.dialPod(ctx, uint16(probe.Port))
	if err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	return c.Close()
}

func (p *proxy) probeGRPC(ctx context.Context, probe *grpcProbe) error {
	conn, err := grpc.NewClient("passthrough:///"+p.podAddress().String(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return p.dialPod(ctx, uint16(probe.Port)) }))
	if err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	defer conn.Close()
	answer, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: probe.Service})
	if err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	if s := answer.GetStatus(); s != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("probe: the application says %s", s)
	}
	return nil
}

// appMetrics reads the application's own metrics.
func (p *proxy) appMetrics(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, scrapeDeadline)
	defer cancel()
	select {
	case p.scrapes <- struct{}{}:
		defer func() { <-p.scrapes }()
	case <-ctx.Done():
		return nil, fmt.Errorf("read metrics of the application: %w", ctx.Err())
	}
	m := p.cfg.AppMetrics
	url := "http://" + net.JoinHostPort(p.podAddress().String(), strconv.Itoa(int(m.Port))) + "/" + strings.TrimPrefix(m.Path, "/")
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, fmt.Errorf("read metrics of the application: %w", err)
	}
	req.Header.Set("Accept", "text/plain;version=0.0.4")
	res, err := p.probeClient(m.Port).Do(req)
	if err != nil {
		return nil, fmt.Errorf("read metrics of the application: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("read metrics of the application: status %d", res.StatusCode)
	}
	return io.ReadAll(io.LimitReader(res.Body, maxScrape))
}
