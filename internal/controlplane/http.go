package controlplane

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"podseal.io/podseal/internal/xds"
)

// serveHTTP serves until the context ends, over TLS if tlsConfig is not nil.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler, tlsConfig *tls.Config, log *slog.Logger) error {
	s := &http.Server{
		Handler:           h,
		TLSConfig:         tlsConfig,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() {
		if tlsConfig != nil {
			failed <- s.ServeTLS(l, "", "")
			return
		}
		failed <- s.Serve(l)
	}()
	select {
	case err := <-failed:
		return fmt.Errorf("serve on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := s.Shutdown(stop); err != nil {
		_ = s.Close() // whatever is still open is cut
	}
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve on %s: %w", l.Addr(), err)
	}
	return nil
}

// healthServer is port 8080.
type healthServer struct {
	authority *authority
	publisher *publisher
	streams   *xds.Server
	store     *xds.Store
}

func (h *healthServer) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ready", h.ready)
	mux.HandleFunc("GET /debug/proxies", h.proxies)
	mux.HandleFunc("GET /debug/resources", h.resources)
	return mux
}

// ready answers 200 when proxies and the API server can be served, else 503 with
// what is missing. What is wrong but doesn't stop us is said in both cases.
func (h *healthServer) ready(w http.ResponseWriter, _ *http.Request) {
	var missing []string
	if _, err := h.authority.Settings(); err != nil {
		missing = append(missing, err.Error())
	}
	if _, err := h.authority.Issuer(); err != nil {
		missing = append(missing, err.Error())
	}
	if !h.publisher.published() {
		missing = append(missing, "nothing was published to proxies yet")
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if len(missing) > 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = fmt.Fprintln(w, strings.Join(missing, "\n"))
		return
	}
	_, _ = fmt.Fprintln(w, "ready")
	if err := h.authority.Problem(); err != nil {
		_, _ = fmt.Fprintln(w, "warning: the last good input stays in force: "+err.Error())
	}
}

func (h *healthServer) proxies(w http.ResponseWriter, _ *http.Request) {
	b, err := json.MarshalIndent(h.streams.Peers(), "", "  ")
	writeJSON(w, b, err)
}

func (h *healthServer) resources(w http.ResponseWriter, _ *http.Request) {
	b, err := h.store.DebugJSON()
	writeJSON(w, b, err)
}

func writeJSON(w http.ResponseWriter, b []byte, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(b, '\n'))
}
