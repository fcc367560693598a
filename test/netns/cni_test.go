package netns

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"

	"podseal.io/podseal/internal/capture"
	"podseal.io/podseal/internal/cni"
	"podseal.io/podseal/internal/proxy"
)

// sandbox is what a container runtime tells the plugin of a pod.
func sandbox(t *testing.T, p *pod, annotations map[string]string) *skel.CmdArgs {
	t.Helper()
	conf, err := json.Marshal(map[string]any{
		"cniVersion": "1.0.0", "name": "net", "type": cni.Name,
		"runtimeConfig": map[string]any{"io.kubernetes.cri.pod-annotations": annotations},
		"prevResult":    map[string]any{"cniVersion": "1.0.0", "ips": []any{map[string]any{"address": p.v4.String() + "/24"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return &skel.CmdArgs{Netns: fmt.Sprintf("/proc/self/fd/%d", p.ns.Fd()), Args: "K8S_POD_NAMESPACE=shop", StdinData: conf}
}

// byPlugin runs the plugin for an injected pod.
func byPlugin(t *testing.T, p *pod, more ...string) error {
	t.Helper()
	annotations := map[string]string{"sidecar.istio.io/status": `{"initContainers":["istio-proxy"]}`}
	for i := 0; i < len(more); i += 2 {
		annotations[more[i]] = more[i+1]
	}
	plugin := cni.Plugin{Stdout: &bytes.Buffer{}}
	return plugin.Add(t.Context(), sandbox(t, p, annotations))
}

// TestPlugin: the plugin captures an injected pod with the kernel's redirection, and no
// other (contract 5.50 to 5.52).
func TestPlugin(t *testing.T) {
	a, b := newPods(t)
	serveAll(t, a, "a")
	serveAll(t, b, "b")
	plugin := cni.Plugin{Stdout: &bytes.Buffer{}}
	if err := plugin.Add(t.Context(), sandbox(t, b, map[string]string{"some": "pod"})); err != nil {
		t.Fatal(err)
	}
	if err := byPlugin(t, a, "traffic.sidecar.istio.io/excludeOutboundPorts", "8081", "traffic.sidecar.istio.io/includeOutboundIPRanges", "*"); err != nil {
		t.Fatal(err)
	}
	check(t, []way{
		{"outbound", a, app, "", "10.77.0.2:8080", "out 10.77.0.2:8080"},
		{"outbound IPv6", a, app, "", "[fd77::2]:8080", "out [fd77::2]:8080"},
		{"excluded port", a, app, "", "10.77.0.2:8081", "b from 10.77.0.1"},
		{"the proxy", a, sidecar, "", "10.77.0.2:8080", "b from 10.77.0.1"},
		{"inbound", b, app, "", "10.77.0.1:8080", "in 10.77.0.1:8080"},
		{"who is not injected", b, app, "", "10.77.0.2:8080", "b from 10.77.0.2"},
		{"inbound of who is not injected", a, sidecar, "", "[fd77::2]:8080", "b from fd77::1"},
	})
	if n := segmentOf(t, a); n <= ordinary {
		t.Errorf("lo takes %d bytes in one piece; this test needs Linux 6.3 or later", n)
	}
	args := sandbox(t, a, map[string]string{"sidecar.istio.io/status": `{"containers":["istio-proxy"]}`, "traffic.sidecar.istio.io/excludeOutboundPorts": "8081"})
	if err := plugin.Check(t.Context(), args); err != nil {
		t.Error(err)
	}
	nft(t, a, "delete chain inet podseal prerouting")
	if err := plugin.Check(t.Context(), args); err == nil {
		t.Error("CHECK doesn't see that a chain is gone")
	}
	if err := byPlugin(t, a); err != nil || plugin.Check(t.Context(), args) == nil {
		t.Errorf("CHECK doesn't see that something else is excluded: %v", err)
	}
}

// inbound listens where a proxy would.
func inbound(t *testing.T, p *pod) []*net.TCPListener {
	t.Helper()
	var all []*net.TCPListener
	p.do(t, sidecar, func() error {
		for _, network := range []string{"tcp4", "tcp6"} {
			var lc net.ListenConfig
			lc.SetMultipathTCP(false)
			l, err := lc.Listen(t.Context(), network, ":15006")
			if err != nil {
				return err
			}
			t.Cleanup(func() { l.Close() })
			all = append(all, l.(*net.TCPListener))
		}
		return nil
	})
	return all
}

// prove is what the proxy does in p before it serves.
func prove(t *testing.T, p *pod, as identity, listeners []*net.TCPListener) ([]*net.TCPConn, error) {
	t.Helper()
	var others []*net.TCPConn
	err := p.try(as, func() error {
		addrs, err := capture.PodAddresses()
		if err != nil {
			return err
		}
		if len(addrs) != 2 {
			return fmt.Errorf("the pod has the addresses %v", addrs)
		}
		others, err = capture.Prove(t.Context(), listeners, addrs)
		return err
	})
	for _, c := range others {
		t.Cleanup(func() { c.Close() })
	}
	return others, err
}

// TestProve: a program without rights finds out whether its pod is captured, in both
// families (contract 5.14).
func TestProve(t *testing.T) {
	a, b := newPods(t)
	listeners := inbound(t, a)
	began := time.Now()
	if _, err := prove(t, a, sidecar, listeners); !errors.Is(err, capture.ErrNotCaptured) {
		t.Errorf("not captured: %v", err)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("to find that out took %v", took)
	}
	// what answers at that port is no proof
	var l net.Listener
	a.do(t, app, func() (err error) { l, err = net.Listen("tcp", "[::]:15002"); return err })
	if _, err := prove(t, a, sidecar, listeners); !errors.Is(err, capture.ErrNotCaptured) {
		t.Errorf("not captured, and something listens there: %v", err)
	}
	l.Close()

	apply(t, a)
	if others, err := prove(t, a, sidecar, listeners); err != nil || len(others) != 0 {
		t.Errorf("captured: %v, %d others", err, len(others))
	}
	if _, err := prove(t, a, app, listeners); !errors.Is(err, capture.ErrNotCaptured) {
		t.Errorf("captured, but proved by somebody whose connections are not redirected so: %v", err)
	}
	// who connects meanwhile is not lost
	var early net.Conn
	b.do(t, app, func() (err error) { early, err = net.Dial("tcp", "10.77.0.1:8080"); return err })
	defer early.Close()
	others, err := prove(t, a, sidecar, listeners)
	if err != nil {
		t.Error(err)
	}
	if len(others) == 0 { // it came too late to be seen, and waits
		listeners[0].SetDeadline(time.Now().Add(deadline))
		c, err := listeners[0].AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		others = append(others, c)
	}
	if dst, err := capture.OriginalDst(others[0]); err != nil || dst != netip.MustParseAddrPort("10.77.0.1:8080") {
		t.Errorf("what came meanwhile went to %v, %v", dst, err)
	}
	for _, args := range [][]string{{"-o", "15002,15003"}, {"-b", ""}, {"-i", ""}, {"-c", "eth0"}, {"-x", "10.77.0.0/16,fd77::/16"}} {
		apply(t, a, args...)
		if _, err := prove(t, a, sidecar, listeners); err != nil {
			t.Errorf("%v: %v", args, err)
		}
	}
	// half of the rules
	nft(t, a, "flush chain inet podseal istio_output")
	if _, err := prove(t, a, sidecar, listeners); !errors.Is(err, capture.ErrNotCaptured) {
		t.Errorf("a chain is empty: %v", err)
	}
}

// TestUncapturedProxyHolds: a pod that the plugin passed over gets no proxy that is
// ready, and so no application; the same proxy in a captured pod goes on (contract
// 5.52).
func TestUncapturedProxyHolds(t *testing.T) {
	a, _ := newPods(t)
	run := func(ctx context.Context) error {
		var out bytes.Buffer
		cfg := proxy.Config{
			Log: slog.New(slog.NewTextHandler(&out, nil)), Namespace: "shop", Pod: "web", Listen: proxy.DefaultListen(), OriginalDst: capture.OriginalDst, Random: rand.IntN,
			Prove: func(ctx context.Context, inbound []*net.TCPListener) ([]*net.TCPConn, error) {
				addrs, err := capture.PodAddresses()
				if err != nil {
					return nil, err
				}
				return capture.Prove(ctx, inbound, addrs)
			},
		}
		err := a.try(sidecar, func() error { return proxy.Run(ctx, cfg) })
		if strings.Contains(out.String(), "proxy started") != (err == nil) {
			t.Errorf("%v, and the log says %s", err, out.String())
		}
		return err
	}
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	if err := run(ctx); !errors.Is(err, capture.ErrNotCaptured) {
		t.Errorf("not captured: %v", err)
	}
	if err := byPlugin(t, a); err != nil {
		t.Fatal(err)
	}
	soon, stop := context.WithTimeout(t.Context(), time.Second)
	defer stop()
	if err := run(soon); err != nil {
		t.Errorf("captured: %v", err)
	}
}
