package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// policyLimit is how soon a change must be in force, in ms.
const policyLimit = 1000

// Between two tries of the client there is a pause, so that trying does not take
// the CPU from what is measured.
const (
	tryPause   = 2 * time.Millisecond
	tryTimeout = 2 * time.Second
	settle     = 500 * time.Millisecond
)

// seen is what a client outside the mesh finds, and when it found it.
type seen struct {
	open bool
	at   time.Time
}

// policy changes the mode of the server's namespace to and fro and measures from
// the API server's answer until a client outside the mesh, which tries without
// end, finds the change in force, and until a connection that it holds open is cut.
func (m *mesh) policy(ctx context.Context, o Options, r *Report) error {
	server := m.servers[meshed]
	stop, err := m.serveIn(ctx, server)
	if err != nil {
		return err
	}
	defer stop()
	address, err := netip.ParseAddr(server.Status.PodIP)
	if err != nil {
		return fmt.Errorf("address of the server: %w", err)
	}
	to := netip.AddrPortFrom(address, port).String()
	policy := object("security.istio.io/v1", "PeerAuthentication", meshed, "default", map[string]any{"mtls": map[string]any{"mode": "PERMISSIVE"}})
	if err := m.kube.Create(ctx, policy); err != nil {
		return fmt.Errorf("create the policy: %w", err)
	}

	ctx, cancel := context.WithCancel(ctx)
	finds := make(chan seen, 16)
	done := make(chan error, 1)
	go func() { done <- inNetwork(m.clients[plain], func() error { return try(ctx, to, finds) }) }()
	defer func() { cancel(); <-done }()
	if _, err := next(ctx, finds, true); err != nil {
		return err
	}
	var refused, cut, allowed []float64
	change := func(mode string) (time.Time, error) {
		time.Sleep(settle)
		patch := client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"spec":{"mtls":{"mode":%q}}}`, mode))
		err := m.kube.Patch(ctx, policy, patch)
		return time.Now(), err
	}
	for i := range o.Changes {
		held, err := m.hold(to)
		if err != nil {
			return err
		}
		answered, err := change("STRICT")
		if err != nil {
			return fmt.Errorf("change the policy: %w", err)
		}
		at, err := next(ctx, finds, false)
		if err != nil {
			return err
		}
		refused = append(refused, ms(at.Sub(answered)))
		cut = append(cut, ms((<-held).Sub(answered)))
		if answered, err = change("PERMISSIVE"); err != nil {
			return fmt.Errorf("change the policy: %w", err)
		}
		if at, err = next(ctx, finds, true); err != nil {
			return err
		}
		allowed = append(allowed, ms(at.Sub(answered)))
		fmt.Fprintf(os.Stderr, "change %d of %d: refused after %.0f ms, open connection cut after %.0f ms, allowed after %.0f ms\n", i+1, o.Changes, refused[i], cut[i], allowed[i])
	}
	r.add(Figure{Name: "PERMISSIVE → STRICT, new connections refused", Unit: "ms", Series: refused, Limit: policyLimit})
	r.add(Figure{Name: "PERMISSIVE → STRICT, open connection cut", Unit: "ms", Series: cut, Limit: policyLimit})
	r.add(Figure{Name: "STRICT → PERMISSIVE, new connections allowed", Unit: "ms", Series: allowed, Limit: policyLimit})
	return nil
}

// ms is a time in ms. A change can be in force before the API server has answered.
func ms(d time.Duration) float64 { return max(0, float64(d.Microseconds())/1e3) }

// next waits for the client to find it so.
func next(ctx context.Context, finds <-chan seen, open bool) (time.Time, error) {
	timer := time.NewTimer(30 * time.Second)
	defer timer.Stop()
	for {
		select {
		case s := <-finds:
			if s.open == open {
				return s.at, nil
			}
		case <-timer.C:
			return time.Time{}, fmt.Errorf("the client did not find the server open: %v within 30 s", open)
		case <-ctx.Done():
			return time.Time{}, context.Cause(ctx)
		}
	}
}

// try connects again and again and says each time that the outcome is another.
// It runs on a thread of the client's network.
func try(ctx context.Context, to string, finds chan<- seen) error {
	last, first := false, true
	for ctx.Err() == nil {
		c, err := exchange(to)
		if c != nil {
			c.Close()
		}
		if s := (seen{err == nil, time.Now()}); first || s.open != last {
			select {
			case finds <- s:
			case <-ctx.Done():
			}
			first, last = false, s.open
		}
		time.Sleep(tryPause)
	}
	return nil
}

// exchange opens a connection and sends a byte to and fro.
func exchange(to string) (net.Conn, error) {
	c, err := net.DialTimeout("tcp", to, tryTimeout) // no context: the thread's network must be the dialer's
	if err != nil {
		return nil, err
	}
	if err := c.SetDeadline(time.Now().Add(tryTimeout)); err != nil {
		return c, err
	}
	if _, err := c.Write([]byte{wantEcho, 'x'}); err != nil {
		return c, err
	}
	_, err = io.ReadFull(c, make([]byte, 1))
	return c, err
}

// hold opens a connection from outside the mesh and tells when it is cut.
func (m *mesh) hold(to string) (<-chan time.Time, error) {
	var c net.Conn
	err := inNetwork(m.clients[plain], func() (err error) {
		c, err = exchange(to)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open a connection: %w", err)
	}
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	cut := make(chan time.Time, 1)
	go func() {
		_, _ = c.Read(make([]byte, 1)) // it ends in the error that is waited for
		cut <- time.Now()
		c.Close()
	}()
	return cut, nil
}
