package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// listeners are the sockets of one capture port: one for each address family,
// since the original destination is read by family (contract B5).
type listeners []*net.TCPListener

// sockets are all that a proxy listens on.
type sockets struct {
	outbound, inbound listeners
	servers           []server
}

// server serves one of the ports that aren't captured: serve until close.
type server struct {
	listener net.Listener
	serve    func(net.Listener) error
	close    func() error
}

// bind opens every socket or none.
func (p *proxy) bind(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			p.sockets.close()
		}
	}()
	l := p.cfg.Listen
	if p.sockets.outbound, err = bindCapture(ctx, l.Outbound, true); err != nil {
		return err
	}
	if p.sockets.inbound, err = bindCapture(ctx, l.Inbound, false); err != nil {
		return err
	}
	ready := &readiness{notReady: p.notReady}
	for _, s := range []struct {
		addr    string
		handler http.Handler // nil for readiness
	}{{l.Health, nil}, {l.Metrics, p.metricsHandler()}, {l.Stats, p.statsHandler()}, {l.Admin, p.adminHandler()}} {
		if s.addr == "" {
			continue
		}
		listener, err := listen(ctx, "tcp", s.addr, false)
		if err != nil {
			return err
		}
		serving := server{listener, ready.serve, ready.close}
		if s.handler != nil {
			h := httpServer(s.handler, p.log)
			serving = server{listener, h.Serve, h.Close}
			if s.addr == l.Metrics || s.addr == l.Stats {
				serving.listener = ownListener{listener, p}
			}
		}
		p.sockets.servers = append(p.sockets.servers, serving)
	}
	return nil
}

// Bounds of one request to the proxy's own ports, which anybody may connect to:
// nobody's silence may hold memory. Probes have their own ([probeBounds]).
const (
	askTimeout    = 15 * time.Second
	answerTimeout = 30 * time.Second
)

func httpServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: askTimeout, WriteTimeout: answerTimeout,
		IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// bindCapture listens on an address; on both families if it names no host. Clients
// that are local, in this pod, don't vanish without a word.
func bindCapture(ctx context.Context, addr string, local bool) (listeners, error) {
	if addr == "" {
		return nil, nil
	}
	networks := []string{"tcp"}
	if strings.HasPrefix(addr, ":") {
		networks = []string{"tcp4", "tcp6"}
	}
	var all listeners
	for _, network := range networks {
		l, err := listen(ctx, network, addr, local)
		if network == "tcp6" && (errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL)) {
			continue // a kernel without IPv6
		}
		if err != nil {
			all.close()
			return nil, err
		}
		tcp, ok := l.(*net.TCPListener)
		if !ok {
			return nil, fmt.Errorf("listen on %s: not TCP", addr)
		}
		all = append(all, tcp)
	}
	return all, nil
}

// listen opens a socket; a taken port is reported with what to do about it.
// Multipath TCP, which Go would offer, is declined: the kernel doesn't tell the
// original destination of such a connection. Its client then goes on with TCP.
func listen(ctx context.Context, network, addr string, local bool) (net.Listener, error) {
	config := net.ListenConfig{KeepAlive: -1} // four system calls less for each connection,
	config.SetMultipathTCP(false)
	if !local {
		config.Control = keepAlive // which inherits it
	}
	l, err := config.Listen(ctx, network, addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		_, port, _ := net.SplitHostPort(addr)
		return nil, fmt.Errorf("listen on %s: port %s is taken by another program in this pod; the mesh needs it, so give that program another port: %w", addr, port, err)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	return l, nil
}

// keepAlive has connections to a listener ask whether their client is still there, as
// often as package net would.
func keepAlive(_, _ string, raw syscall.RawConn) error {
	var failed error
	err := raw.Control(func(fd uintptr) {
		for _, o := range [...]struct{ level, name, value int }{
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15},
			{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15},
			{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 9},
		} {
			failed = errors.Join(failed, os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), o.level, o.name, o.value)))
		}
	})
	return errors.Join(err, failed)
}

func (l listeners) String() string {
	var all []string
	for _, x := range l {
		all = append(all, x.Addr().String())
	}
	return strings.Join(all, ",")
}

// at reports whether one of the sockets listens at this address. Those of a pod
// listen at every one.
func (l listeners) at(a netip.AddrPort) bool {
	for _, x := range l {
		own := addrPort(x.Addr())
		if own.Port() == a.Port() && (own.Addr().IsUnspecified() || own.Addr() == a.Addr().Unmap()) {
			return true
		}
	}
	return false
}

func (l listeners) close() {
	for _, x := range l {
		_ = x.Close() // it may have been closed before
	}
}

// accept starts an accept loop for each socket; the loops end when the sockets
// are closed.
func (l listeners) accept(owner *sync.WaitGroup, log *slog.Logger, take func(*net.TCPConn)) {
	for _, x := range l {
		owner.Go(func() {
			for {
				c, err := x.AcceptTCP()
				switch {
				case err == nil:
					take(c)
				case errors.Is(err, net.ErrClosed):
					return
				default: // e.g. no file descriptors: what is open goes on
					log.Warn("accept failed", slog.String("error", err.Error()))
					time.Sleep(acceptPause)
				}
			}
		})
	}
}

// serveHTTP serves the ports that aren't captured until the context ends.
func (s *sockets) serveHTTP(ctx context.Context, log *slog.Logger) {
	var all sync.WaitGroup
	for _, x := range s.servers {
		all.Go(func() {
			if err := x.serve(x.listener); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
				log.Error("server failed", slog.String("addr", x.listener.Addr().String()), slog.String("error", err.Error()))
			}
		})
	}
	<-ctx.Done()
	for _, x := range s.servers {
		_ = x.listener.Close() // the server may do so as well
		_ = x.close()          // nothing here is worth waiting for
	}
	all.Wait()
}

func (s *sockets) close() {
	s.outbound.close()
	s.inbound.close()
	for _, x := range s.servers {
		_ = x.listener.Close() // it may have been closed before
	}
}
