package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Limits, in MB of 10⁶ bytes.
const (
	diskLimit   = 16
	memoryLimit = 14
)

// size is that of the program.
func (m *mesh) size(_ context.Context, o Options, r *Report) error {
	info, err := os.Stat(filepath.Join(o.Setup.Bin, "podseal-proxy"))
	if err != nil {
		return fmt.Errorf("find the proxy: %w", err)
	}
	r.add(Figure{Name: "podseal-proxy on disk", Unit: "MB", Value: float64(info.Size()) / 1e6, Limit: diskLimit})
	return nil
}

// memory is that of a proxy that has its certificate and its world, and never
// had a connection. Its pages of the program are shared with other proxies of
// the node; resident (RSS) counts them all, proportional (PSS) its share of them.
func (m *mesh) memory(ctx context.Context, o Options, r *Report) error {
	pid, err := process(m.idle, "istio-proxy")
	if err != nil {
		return err
	}
	age := time.Since(m.idle.CreationTimestamp.Time)
	if wait := o.Idle - age; wait > 0 {
		fmt.Fprintf(os.Stderr, "waiting %.0f s until the idle proxy is %s old\n", wait.Seconds(), o.Idle)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	idle, err := memory(pid)
	if err != nil {
		return err
	}
	r.add(Figure{Name: "idle proxy, resident (RSS)", Unit: "MB", Value: idle["Rss"], Limit: memoryLimit})
	r.add(Figure{Name: "idle proxy, its share (PSS)", Unit: "MB", Value: idle["Pss"], Limit: memoryLimit})
	r.add(Figure{Name: "idle proxy, its own (anonymous)", Unit: "MB", Value: idle["Anonymous"]})
	if pid, err = process(m.servers[meshed], "istio-proxy"); err != nil {
		return err
	}
	used, err := memory(pid)
	if err != nil {
		return err
	}
	r.add(Figure{Name: "a proxy after its traffic has ended, resident (RSS)", Unit: "MB", Value: used["Rss"]})
	return nil
}
