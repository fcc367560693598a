package wire

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"testing"

	"podseal.io/podseal/internal/policy"
)

// recorder keeps what a TLS client writes first and then hangs up.
type recorder struct {
	net.Conn
	wrote bytes.Buffer
}

func (r *recorder) Write(b []byte) (int, error) { return r.wrote.Write(b) }
func (r *recorder) Read([]byte) (int, error)    { return 0, io.EOF }

func clientHello(t testing.TB, cfg *tls.Config) []byte {
	t.Helper()
	r := &recorder{}
	cfg.InsecureSkipVerify = true
	if err := tls.Client(r, cfg).Handshake(); err == nil {
		t.Fatal("handshake without a server succeeded")
	}
	b := r.wrote.Bytes()
	return b[:recordHeader+int(binary.BigEndian.Uint16(b[3:]))] // what follows is an alert
}

// records splits the handshake bytes of a one-record hello into records of n bytes.
func records(hello []byte, n int) []byte {
	var out []byte
	for part := range slices.Chunk(hello[recordHeader:], n) {
		out = append(out, recordHandshake, 3, 1, byte(len(part)>>8), byte(len(part)))
		out = append(out, part...)
	}
	return out
}

func TestParseClientHello(t *testing.T) {
	tests := map[string]struct {
		cfg  *tls.Config
		want Hello
	}{
		"istio peer of an HTTP service": {
			&tls.Config{ServerName: "outbound_.80_._.web.shop.svc.cluster.local", NextProtos: []string{"istio-http/1.1", "istio", "http/1.1"}, MinVersion: tls.VersionTLS12},
			Hello{SNI: "outbound_.80_._.web.shop.svc.cluster.local", ALPN: []string{"istio-http/1.1", "istio", "http/1.1"}, Versions: []uint16{tls.VersionTLS13, tls.VersionTLS12}},
		},
		"TLS 1.3 only": {
			&tls.Config{ServerName: "x", NextProtos: []string{"podseal", "istio"}, MinVersion: tls.VersionTLS13},
			Hello{SNI: "x", ALPN: []string{"podseal", "istio"}, Versions: []uint16{tls.VersionTLS13}},
		},
		"TLS 1.2 only, no SNI, no ALPN": {
			&tls.Config{MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12},
			Hello{Versions: []uint16{tls.VersionTLS12}},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			hello := clientHello(t, tt.cfg)
			for _, size := range []int{1 << 14, 1000, 100, 7, 1} {
				b := records(hello, size)
				got, err := ParseClientHello(b)
				if err != nil {
					t.Fatalf("records of %d bytes: %v", size, err)
				}
				if got.SNI != tt.want.SNI || !slices.Equal(got.ALPN, tt.want.ALPN) || !slices.Equal(got.Versions, tt.want.Versions) {
					t.Errorf("records of %d bytes: got %+v, want %+v", size, got, tt.want)
				}
				for i := range b { // cut at every byte
					if _, err := ParseClientHello(b[:i]); !errors.Is(err, ErrShort) {
						t.Fatalf("records of %d bytes, cut at %d: got %v, want ErrShort", size, i, err)
					}
				}
				if _, err := ParseClientHello(append(slices.Clone(b), "what follows"...)); err != nil {
					t.Errorf("records of %d bytes, with bytes behind: %v", size, err)
				}
			}
		})
	}
}

func TestParseClientHelloRefuses(t *testing.T) {
	good := clientHello(t, &tls.Config{ServerName: "x", NextProtos: []string{"istio"}})
	mutate := func(f func(b []byte) []byte) []byte { return f(slices.Clone(good)) }
	tests := map[string]struct {
		in   []byte
		want error
	}{
		"nothing":             {nil, ErrShort},
		"HTTP":                {[]byte("GET / HTTP/1.1\r\n"), ErrNotTLS},
		"first byte only":     {[]byte("G"), ErrNotTLS},
		"SSLv2":               {[]byte{0x80, 0x2e, 1, 3, 1}, ErrNotTLS},
		"record version":      {[]byte{22, 2}, ErrNotTLS},
		"alert":               {[]byte{21, 3, 1, 0, 2, 1, 0}, ErrNotTLS},
		"empty record":        {[]byte{22, 3, 1, 0, 0}, ErrNotTLS},
		"record over 2^14":    {[]byte{22, 3, 1, 0x40, 1}, ErrNotTLS},
		"ServerHello":         {[]byte{22, 3, 1, 0, 4, 2}, ErrNotTLS},
		"announced too large": {[]byte{22, 3, 1, 0, 4, 1, 1, 0, 0}, ErrTooLarge},
		"length one short": {mutate(func(b []byte) []byte {
			binary.BigEndian.PutUint16(b[7:], binary.BigEndian.Uint16(b[7:])-1)
			return b
		}), ErrNotTLS},
		"alert between fragments": {append(records(good, 50)[:2*55:2*55], 21, 3, 1, 0, 2, 1, 0), ErrNotTLS},
		"endless small records":   {bytes.Repeat([]byte{22, 3, 1, 0, 1, 1}, MaxClientHello/6+1), ErrTooLarge},
	}
	// A hello of the longest announced size, in records of one byte, is over the
	// bound before it is complete.
	long := append([]byte{0, 0, 0, 0, 0, 1, 0, 0xf0, 0}, make([]byte, 0xf000)...)
	tests["too large on the wire"] = struct {
		in   []byte
		want error
	}{records(long, 1)[:MaxClientHello], ErrTooLarge}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := ParseClientHello(tt.in); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// helloWith is a minimal ClientHello with these extensions.
func helloWith(extensions ...[]byte) []byte {
	ext := bytes.Join(extensions, nil)
	body := append([]byte{3, 3}, make([]byte, 32)...)
	body = append(body, 0, 0, 2, 0x13, 1, 1, 0)
	body = append(body, byte(len(ext)>>8), byte(len(ext)))
	body = append(body, ext...)
	msg := append([]byte{1, 0, byte(len(body) >> 8), byte(len(body))}, body...)
	return append([]byte{22, 3, 1, byte(len(msg) >> 8), byte(len(msg))}, msg...)
}

func TestParseClientHelloExtensions(t *testing.T) {
	alpn := []byte{0, 16, 0, 8, 0, 6, 5, 'i', 's', 't', 'i', 'o'}
	tests := map[string]struct {
		in []byte
		ok bool
	}{
		"ALPN":              {helloWith(alpn), true},
		"ALPN twice":        {helloWith(alpn, alpn), false},
		"unknown twice":     {helloWith([]byte{9, 9, 0, 0}, []byte{9, 9, 0, 0}), false},
		"empty ALPN":        {helloWith([]byte{0, 16, 0, 0}), false},
		"empty ALPN list":   {helloWith([]byte{0, 16, 0, 2, 0, 0}), false},
		"empty ALPN name":   {helloWith([]byte{0, 16, 0, 3, 0, 1, 0}), false},
		"ALPN overrun":      {helloWith([]byte{0, 16, 0, 4, 0, 2, 5, 'i'}), false},
		"SNI":               {helloWith([]byte{0, 0, 0, 6, 0, 4, 0, 0, 1, 'a'}), true},
		"two SNI names":     {helloWith([]byte{0, 0, 0, 10, 0, 8, 0, 0, 1, 'a', 0, 0, 1, 'b'}), false},
		"empty SNI":         {helloWith([]byte{0, 0, 0, 5, 0, 3, 0, 0, 0}), false},
		"odd versions":      {helloWith([]byte{0, 43, 0, 4, 3, 3, 4, 3}), false},
		"extension overrun": {helloWith([]byte{0, 16, 0, 9, 0}), false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := ParseClientHello(tt.in)
			if (err == nil) != tt.ok || (err != nil && !errors.Is(err, ErrNotTLS)) {
				t.Errorf("got %v, want accepted: %v", err, tt.ok)
			}
		})
	}
}

// contract 2.9-2.12: ALPN alone, in the client's order.
func TestSeen(t *testing.T) {
	for _, tt := range []struct {
		alpn []string
		want policy.Seen
	}{
		{nil, policy.ForeignTLS},
		{[]string{"h2", "http/1.1"}, policy.ForeignTLS},
		{[]string{"istio-something", "ISTIO"}, policy.ForeignTLS},
		{[]string{"istio"}, policy.MeshTCP},
		{[]string{"istio-peer-exchange", "istio"}, policy.MeshTCP},
		{[]string{"istio-peer-exchange", "istio", "h2"}, policy.MeshTCP},
		{[]string{"h2", "istio"}, policy.MeshTCP},
		{[]string{"istio", "istio-http/1.1"}, policy.MeshTCP},
		{[]string{"istio-http/1.1", "istio", "http/1.1"}, policy.MeshHTTP},
		{[]string{"istio-http/1.0", "istio", "http/1.0"}, policy.MeshHTTP},
		{[]string{"istio-h2", "istio", "h2"}, policy.MeshHTTP},
		{[]string{"podseal", "istio"}, policy.MeshDetect},
		{[]string{"podseal"}, policy.MeshDetect},
		{[]string{"istio", "podseal"}, policy.MeshTCP},
	} {
		if got := (Hello{SNI: "outbound_.80_._.x", ALPN: tt.alpn}).Seen(); got != tt.want {
			t.Errorf("%q: got %v, want %v", tt.alpn, got, tt.want)
		}
	}
}

func FuzzParseClientHello(f *testing.F) {
	f.Add(clientHello(f, &tls.Config{ServerName: "x", NextProtos: []string{"istio"}}))
	f.Add(records(clientHello(f, &tls.Config{ServerName: "x", MaxVersion: tls.VersionTLS12}), 9))
	f.Add(helloWith([]byte{0, 16, 0, 8, 0, 6, 5, 'i', 's', 't', 'i', 'o'}))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseClientHello(b)
		switch {
		case err == nil:
			// crypto/tls is the judge of what it accepts too.
			if std := stdHello(b); std != nil && (std.ServerName != h.SNI || !slices.Equal(std.SupportedProtos, h.ALPN)) {
				t.Errorf("read %+v, crypto/tls reads %q %q", h, std.ServerName, std.SupportedProtos)
			}
		case errors.Is(err, ErrShort), errors.Is(err, ErrNotTLS), errors.Is(err, ErrTooLarge):
		default:
			t.Errorf("unexpected error: %v", err)
		}
		// What is refused for good is refused with more bytes behind it.
		if errors.Is(err, ErrNotTLS) {
			if _, again := ParseClientHello(append(slices.Clone(b), 0)); !errors.Is(again, ErrNotTLS) {
				t.Errorf("refused, but %v with one more byte", again)
			}
		}
	})
}

// replay feeds bytes to a TLS server.
type replay struct {
	net.Conn
	in *bytes.Reader
}

func (r replay) Read(b []byte) (int, error)  { return r.in.Read(b) }
func (r replay) Write(b []byte) (int, error) { return len(b), nil }

// stdHello is what crypto/tls reads, or nil when it refuses.
func stdHello(b []byte) (seen *tls.ClientHelloInfo) {
	cfg := &tls.Config{GetConfigForClient: func(i *tls.ClientHelloInfo) (*tls.Config, error) {
		seen = i
		return nil, io.EOF
	}}
	_ = tls.Server(replay{in: bytes.NewReader(b)}, cfg).Handshake()
	return seen
}
