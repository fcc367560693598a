package proxy

import (
	"io"
	"net"
	"testing"

	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
)

// BenchmarkConnect opens a connection through both proxies, exchanges a byte and
// closes it: two handshakes' worth of work and two records.
func BenchmarkConnect(b *testing.B) {
	p := newPair(b, policy.TCP, meshtest.Echo)
	b.ReportAllocs()
	for b.Loop() {
		c, err := p.net.Connect(b.Context(), p.client.Addresses[0], p.service)
		if err != nil {
			b.Fatal(err)
		}
		exchange(b, c, "x")
		c.Close()
	}
}

// BenchmarkThroughput sends bytes one way through both proxies.
func BenchmarkThroughput(b *testing.B) {
	for _, mode := range []policy.Mode{policy.Strict, policy.Disable} {
		b.Run(map[policy.Mode]string{policy.Strict: "mutual_tls", policy.Disable: "plaintext"}[mode], func(b *testing.B) {
			p := newPair(b, policy.TCP, func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) })
			p.mode(p.server, mode)
			c := p.dial()
			chunk := make([]byte, 256<<10)
			b.SetBytes(int64(len(chunk)))
			for b.Loop() {
				if _, err := c.Write(chunk); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkRequest exchanges a byte over one connection: the latency that two
// proxies add.
func BenchmarkRequest(b *testing.B) {
	p := newPair(b, policy.TCP, meshtest.Echo)
	c := p.dial()
	exchange(b, c, "x")
	b.ReportAllocs()
	for b.Loop() {
		exchange(b, c, "x")
	}
}
