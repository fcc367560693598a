package proxy

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
)

// message reads a message of the TLS handshake and returns its type and body.
func message(t testing.TB, r io.Reader) (kind byte, body []byte) {
	t.Helper()
	head := make([]byte, 4)
	if _, err := io.ReadFull(r, head); err != nil {
		t.Fatal(err)
	}
	body = make([]byte, int(head[1])<<16|int(head[2])<<8|int(head[3]))
	if _, err := io.ReadFull(r, body); err != nil {
		t.Fatal(err)
	}
	return head[0], body
}

// records takes the records of a handshake apart.
type records struct {
	c    net.Conn
	left []byte
}

func (r *records) Read(b []byte) (int, error) {
	if len(r.left) == 0 {
		head := make([]byte, 5)
		if _, err := io.ReadFull(r.c, head); err != nil {
			return 0, err
		}
		r.left = make([]byte, binary.BigEndian.Uint16(head[3:]))
		if _, err := io.ReadFull(r.c, r.left); err != nil {
			return 0, err
		}
		if head[0] != 22 {
			return 0, io.ErrUnexpectedEOF
		}
	}
	n := copy(b, r.left)
	r.left = r.left[n:]
	return n, nil
}

// cutter takes vectors of TLS off the front.
type cutter struct{ b []byte }

func (c *cutter) take(n int) []byte {
	out := c.b[:n]
	c.b = c.b[n:]
	return out
}

func (c *cutter) vector(size int) []byte {
	n := 0
	for _, b := range c.take(size) {
		n = n<<8 | int(b)
	}
	return c.take(n)
}

// extensions are what a hello says, by number, in hexadecimal.
func extensions(b []byte) map[uint16]string {
	out := map[uint16]string{}
	for c := (cutter{b}); len(c.b) > 0; {
		kind := binary.BigEndian.Uint16(c.take(2))
		out[kind] = hex.EncodeToString(c.vector(2))
	}
	return out
}

// alpnBytes is the extension for these names, in hexadecimal.
func alpnBytes(names ...string) string {
	var list []byte
	for _, n := range names {
		list = append(append(list, byte(len(n))), n...)
	}
	return hex.EncodeToString(append(binary.BigEndian.AppendUint16(nil, uint16(len(list))), list...))
}

// Numbers of extensions.
const (
	extSNI, extGroups, extALPN, extEMS, extTicket, extPSK, extEarly, extVersions, extPSKModes, extKeyShare = 0, 10, 16, 23, 35, 41, 42, 43, 45, 51
)

// TestHelloBytes is what a mesh peer that is no proxy of ours gets from us, byte by
// byte. Contract 2.19, 2.20, 2.25, 2.26, 2.28, 3.47, 3.48, 3.49, 3.50.
func TestHelloBytes(t *testing.T) {
	for proto, alpn := range map[policy.Protocol]string{
		policy.TCP:  alpnBytes("podseal-mux", "istio"),
		policy.HTTP: alpnBytes("podseal-mux", "istio-http/1.1", "istio", "http/1.1"),
		policy.Auto: alpnBytes("podseal-mux", "podseal", "istio"),
	} {
		t.Run(proto.String(), func(t *testing.T) {
			hello := make(chan []byte, 1)
			m := newTestMesh(t)
			client, server := m.pod("client"), m.pod("web")
			app := meshtest.Serve(t, server.Addresses[0], func(c *net.TCPConn) {
				if kind, body := message(t, &records{c: c}); kind == 1 {
					hello <- body
				}
			})
			m.world.Service("web", vip(80), proto, app.Port(), server)
			m.start(client)
			m.connect(client.Addresses[0], vip(80))

			c := cutter{<-hello}
			if version := c.take(2); !bytes.Equal(version, []byte{3, 3}) {
				t.Errorf("version %x", version)
			}
			c.take(32)
			c.vector(1)
			var suites []string
			for s := (cutter{c.vector(2)}); len(s.b) > 0; {
				suites = append(suites, tls.CipherSuiteName(binary.BigEndian.Uint16(s.take(2))))
			}
			for _, s := range suites {
				if !strings.Contains(s, "GCM") && !strings.Contains(s, "CHACHA20_POLY1305_SHA256") || strings.HasPrefix(s, "TLS_RSA") {
					t.Errorf("offers %s", s)
				}
			}
			for _, want := range []string{"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_AES_128_GCM_SHA256"} {
				if !slices.Contains(suites, want) {
					t.Errorf("doesn't offer %s", want)
				}
			}
			c.vector(1)
			ext := extensions(c.vector(2))
			const name = "outbound_.80_._.web.shop.svc.cluster.local"
			sni := binary.BigEndian.AppendUint16(nil, uint16(len(name)+3))
			sni = append(binary.BigEndian.AppendUint16(append(sni, 0), uint16(len(name))), name...)
			for kind, want := range map[uint16]string{
				extSNI: hex.EncodeToString(sni), extALPN: alpn, extVersions: "0403040303", extGroups: "000611ec001d0017", extTicket: "", extPSKModes: "0101",
			} {
				if ext[kind] != want {
					t.Errorf("extension %d: %s, want %s", kind, ext[kind], want)
				}
			}
			for _, kind := range []uint16{extPSK, extEarly} {
				if _, there := ext[kind]; there {
					t.Errorf("extension %d without a session", kind)
				}
			}
			if !strings.HasPrefix(ext[extKeyShare][4:], "11ec") {
				t.Errorf("key share %.20s", ext[extKeyShare])
			}
		})
	}
}

// envoyHello is a ClientHello of TLS 1.2 as a proxy of Istio's may send it: the suites
// of contract 2.20, the server name and these ALPN names.
func envoyHello(alpn ...string) []byte {
	ext := func(b []byte, kind uint16, body string) []byte {
		raw, err := hex.DecodeString(body)
		if err != nil {
			panic(err)
		}
		b = binary.BigEndian.AppendUint16(b, kind)
		return append(binary.BigEndian.AppendUint16(b, uint16(len(raw))), raw...)
	}
	const name = "outbound_.80_._.web.shop.svc.cluster.local"
	sni := append([]byte{0, byte(len(name) + 3), 0, 0, byte(len(name))}, name...)
	var exts []byte
	exts = ext(exts, extSNI, hex.EncodeToString(sni))
	exts = ext(exts, extEMS, "")
	exts = ext(exts, 0xff01, "00")
	exts = ext(exts, extGroups, "0004001d0017")
	exts = ext(exts, 11, "0100")
	exts = ext(exts, extTicket, "")
	exts = ext(exts, extALPN, alpnBytes(alpn...))
	exts = ext(exts, 13, "0010"+"04030804040105030805050108060601")
	body := append([]byte{3, 3}, bytes.Repeat([]byte{7}, 32)...)
	body = append(body, 0)
	body = append(body, 0, 12, 0xc0, 0x2c, 0xc0, 0x30, 0xc0, 0x2b, 0xc0, 0x2f, 0x00, 0x9d, 0x00, 0x9c)
	body = append(body, 1, 0)
	body = append(binary.BigEndian.AppendUint16(body, uint16(len(exts))), exts...)
	hello := append([]byte{1, 0, byte(len(body) >> 8), byte(len(body))}, body...)
	return append([]byte{22, 3, 1, byte(len(hello) >> 8), byte(len(hello))}, hello...)
}

// TestServerHelloBytes is what such a client gets from us, byte by byte. Contract 2.18,
// 2.20, 2.21, 2.25, 2.26, 2.27, 2.28.
func TestServerHelloBytes(t *testing.T) {
	for name, tt := range map[string]struct {
		offers []string
		chosen string
	}{
		"TCP":      {[]string{"istio-peer-exchange", "istio"}, ""},
		"TCP, h2":  {[]string{"istio-peer-exchange", "istio", "h2"}, "h2"},
		"HTTP/1.1": {[]string{"istio-http/1.1", "istio", "http/1.1"}, "http/1.1"},
		"HTTP/2":   {[]string{"istio-h2", "istio", "h2"}, "h2"},
		"HTTP/1.0": {[]string{"istio-http/1.0", "istio", "http/1.0"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, policy.Auto, meshtest.Echo)
			p.mode(p.server, policy.Strict)
			c := p.connect(p.outsider(), p.app)
			if _, err := c.Write(envoyHello(tt.offers...)); err != nil {
				t.Fatal(err)
			}
			r := &records{c: c}
			kind, hello := message(t, r)
			if kind != 2 {
				t.Fatalf("message %d, not a ServerHello", kind)
			}
			b := cutter{hello}
			if version := b.take(2); !bytes.Equal(version, []byte{3, 3}) {
				t.Errorf("version %x", version)
			}
			b.take(32)
			if session := b.vector(1); len(session) != 0 {
				t.Errorf("session %x", session)
			}
			if suite := binary.BigEndian.Uint16(b.take(2)); suite != tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 && suite != tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 {
				t.Errorf("suite %s", tls.CipherSuiteName(suite))
			}
			b.take(1)
			ext := extensions(b.vector(2))
			want := ""
			if tt.chosen != "" {
				want = alpnBytes(tt.chosen)
			}
			if got, there := ext[extALPN]; got != want || there != (tt.chosen != "") {
				t.Errorf("ALPN %s, want %s", got, want)
			}
			if _, there := ext[extTicket]; there {
				t.Error("a session ticket")
			}
			var kinds []byte
			for kind = 0; kind != 14; {
				kind, _ = message(t, r)
				kinds = append(kinds, kind)
			}
			if !bytes.Equal(kinds, []byte{11, 12, 13, 14}) { // certificate, key exchange, certificate request, done
				t.Errorf("messages %d", kinds)
			}
		})
	}
}

// TestEnvoyServer: a server that chooses as Envoy does gets the application's bytes and
// nothing before them. Contract 2.26, 2.27, 2.28, 3.48, 3.49.
func TestEnvoyServer(t *testing.T) {
	for proto, offers := range map[policy.Protocol][]string{policy.TCP: {"istio-peer-exchange", "h2", "http/1.1"}, policy.HTTP: {"h2", "http/1.1"}} {
		t.Run(proto.String(), func(t *testing.T) {
			got := make(chan string, 1)
			m := newTestMesh(t)
			client, server := m.pod("client"), m.pod("web")
			now := time.Now()
			cert := *m.ca.Issue(t, server.Identity, now.Add(-time.Hour), now.Add(time.Hour)).TLS()
			app := meshtest.Serve(t, server.Addresses[0], func(c *net.TCPConn) {
				s := tls.Server(c, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
					cfg := &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAnyClientCert}
					for _, name := range offers { // without an overlap Envoy goes on
						if slices.Contains(h.SupportedProtos, name) {
							cfg.NextProtos = append(cfg.NextProtos, name)
						}
					}
					return cfg, nil
				}})
				buf := make([]byte, 64)
				n, err := s.Read(buf)
				if err != nil {
					t.Error(err)
				}
				_, _ = s.Write(buf[:n])
				got <- s.ConnectionState().NegotiatedProtocol + " " + string(buf[:n])
			})
			m.world.Service("web", vip(80), proto, app.Port(), server)
			m.start(client)
			c := m.connect(client.Addresses[0], vip(80))
			exchange(t, c, "GET / HTTP/1.1\r\n\r\n")
			want := map[policy.Protocol]string{policy.TCP: "", policy.HTTP: "http/1.1"}[proto] + " GET / HTTP/1.1\r\n\r\n"
			if s := <-got; s != want {
				t.Errorf("%q, want %q", s, want)
			}
		})
	}
}
