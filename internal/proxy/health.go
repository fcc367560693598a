package proxy

import (
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// notReady says why the proxy isn't ready, or "" if it is. Once ready it stays
// so until it terminates: losing the control plane changes nothing (contract 5.44).
func (p *proxy) notReady() string {
	if p.draining.Load() {
		return "terminating"
	}
	missing := p.missing()
	if missing == "" {
		p.ready.Store(true)
	}
	return missing
}

// missing says what the proxy has never been told, or "".
func (p *proxy) missing() string {
	if p.ready.Load() {
		return ""
	}
	var missing []string
	select {
	case <-p.worlds.known:
	default:
		text := "the control plane has not told this proxy about its pod and its services yet"
		if kinds := p.worlds.untold(); len(kinds) > 0 {
			text = "the control plane tells nothing of " + strings.Join(kinds, ", ") + ": it may be older than this proxy"
		}
		missing = append(missing, text)
	}
	select {
	case <-p.creds.issued:
	default:
		missing = append(missing, errNoCertificate.Error())
	}
	return strings.Join(missing, "; ")
}

func (p *proxy) serveReady(w http.ResponseWriter, _ *http.Request) {
	if why := p.notReady(); why != "" {
		http.Error(w, why, http.StatusServiceUnavailable)
		return
	}
	w.WriteHeader(http.StatusOK)
}

// statsHandler serves the port that scrapers of Envoy know.
func (p *proxy) statsHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/stats/prometheus", p.metrics.Handler())
	return mux
}

// metricsHandler serves the agent's port (contract 5.37, 5.48, 5.49).
func (p *proxy) metricsHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz/ready", p.serveReady)
	mux.HandleFunc("/stats/prometheus", p.serveMerged)
	mux.HandleFunc("/metrics", p.serveMerged)
	mux.HandleFunc("/app-health/", p.serveProbe)
	mux.HandleFunc("/app-lifecycle/", p.serveProbe)
	mux.HandleFunc("/drain", localPost(func() { p.startDraining() }))
	mux.HandleFunc("/quitquitquit", localPost(func() { p.quitOnce.Do(func() { close(p.quit) }) }))
	return mux
}

// serveMerged answers with the proxy's metrics and then the application's, if
// there are any (contract 5.49).
func (p *proxy) serveMerged(w http.ResponseWriter, r *http.Request) {
	r.Header.Del("Accept-Encoding") // two texts are joined
	p.metrics.Handler().ServeHTTP(w, r)
	if p.cfg.AppMetrics.Port == 0 {
		return
	}
	body, err := p.appMetrics(r.Context())
	if err != nil {
		p.metrics.ScrapeFailed()
		return
	}
	_, _ = w.Write(body) // a scraper that hangs up is its own loss
}

// localPost allows POST from the pod itself only (contract 5.48). What this proxy
// lets in from elsewhere has an address of loopback too, but one that is known.
func localPost(do func()) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		from, err := netip.ParseAddrPort(r.RemoteAddr)
		switch addr := from.Addr().Unmap(); {
		case err != nil || !addr.IsLoopback() || addr == loopbackSource(addr):
			http.Error(w, "only requests from within the pod are allowed", http.StatusForbidden)
		case r.Method != http.MethodPost:
			http.Error(w, "only POST is allowed", http.StatusMethodNotAllowed)
		default:
			// The whole answer first: what is done may end this server, and a Job
			// whose call fails has failed.
			w.Header().Set("Content-Length", "3")
			_, _ = io.WriteString(w, "ok\n") // the caller may have gone
			_ = http.NewResponseController(w).Flush()
			do()
		}
	}
}

// podAddress is where the application is reached from within the pod.
func (p *proxy) podAddress() netip.Addr {
	if len(p.cfg.Addresses) > 0 {
		return p.cfg.Addresses[0]
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

// hostOnly is a Host header without its port.
func hostOnly(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		return h
	}
	return host
}
