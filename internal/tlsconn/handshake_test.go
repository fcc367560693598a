package tlsconn

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
)

// FuzzUnder reads what came during a handshake as crypto/tls does, in any sizes:
// everything comes, in order, and never more than to the end of a record that was
// begun.
func FuzzUnder(f *testing.F) {
	hello := append([]byte{22, 3, 1, 0, 40}, make([]byte, 40)...)
	f.Add(append(hello, 23, 3, 3, 0, 1, 9), uint16(5))
	f.Add(append([]byte{23, 3, 3, 0x41, 0}, make([]byte, 17_000)...), uint16(600))
	f.Add([]byte{22, 3}, uint16(0))
	f.Add([]byte{20, 3, 3, 0, 0, 20, 3, 3, 0, 0}, uint16(3))
	f.Fuzz(func(t *testing.T, in []byte, size uint16) {
		var p Pool
		p.turns.take()
		u := &under{TCPConn: &net.TCPConn{}, pool: &p, first: in, buf: p.get(small)}
		got, end := []byte{}, 0
		for {
			buf := make([]byte, 1+int(size)%5000)
			n, err := u.Read(buf)
			got = append(got, buf[:n]...)
			if err != nil {
				break
			}
			if len(got) > end && end+headerLen <= len(in) {
				if end += headerLen + int(binary.BigEndian.Uint16(in[end+3:])); len(got) > end {
					t.Fatalf("%d bytes, beyond the record's end at %d", len(got), end)
				}
			}
		}
		whole := 0
		for rest := in; len(rest) >= headerLen; {
			n := min(len(rest), headerLen+int(binary.BigEndian.Uint16(rest[3:])))
			whole, rest = whole+n, rest[n:]
		}
		if !bytes.Equal(got, in[:whole]) {
			t.Errorf("got %d bytes of %d", len(got), whole)
		}
	})
}

// FuzzPostHandshake cuts messages: how they are cut makes no difference.
func FuzzPostHandshake(f *testing.F) {
	f.Add([]byte{messageKeyUpdate, 0, 0, 1, 0}, uint8(1))
	f.Add([]byte{messageTicket, 0, 0, 3, 1, 2, 3, messageKeyUpdate, 0, 0, 1, 1}, uint8(3))
	f.Add([]byte{messageTicket, 1, 0, 1}, uint8(2))
	f.Add([]byte{1, 0, 0, 0}, uint8(2))
	type result struct {
		messages string
		alert    byte
		idle     bool
	}
	run := func(in []byte, piece int) (r result) {
		var m postHandshake
		for len(in) > 0 && r.alert == 0 {
			part := in[:min(piece, len(in))]
			in = in[len(part):]
			for len(part) > 0 && r.alert == 0 {
				n, whole, alert, why := m.take(part)
				if n == 0 || n > len(part) || (alert != 0) != (why != "") {
					panic("it took nothing, too much, or gives no reason")
				}
				part, r.alert = part[n:], alert
				if whole {
					r.messages += string([]byte{m.typ(), m.last})
				}
			}
		}
		r.idle = m.idle()
		return r
	}
	f.Fuzz(func(t *testing.T, in []byte, piece uint8) {
		a, b := run(in, len(in)+1), run(in, 1+int(piece)%9)
		if a.messages != b.messages || a.alert != b.alert || (a.alert == 0 && a.idle != b.idle) {
			t.Errorf("whole: %+v, in pieces: %+v", a, b)
		}
	})
}

// A handshake that leaves it open which record comes next makes no connection.
func TestUnclearStateIsAnError(t *testing.T) {
	s, _ := suiteOf(tls.TLS_AES_128_GCM_SHA256)
	fresh := func() *keys {
		k := &keys{}
		if err := k.use(s, make([]byte, s.hashLen)); err != nil {
			t.Fatal(err)
		}
		return k
	}
	record := func(k *keys) []byte {
		rec := make([]byte, overhead+3)
		return rec[:k.seal(rec, 3, typeHandshake)]
	}
	ours, other := fresh(), fresh()
	if err := other.update(); err != nil {
		t.Fatal(err)
	}
	handshake, first, second := record(other), record(ours), record(ours)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	plain := []byte{typeCCS, 3, 3, 0, 1, 1}
	for name, c := range map[string]struct {
		sent []byte
		seq  uint64
		bad  bool
	}{
		"nothing":                  {nil, 0, false},
		"of the handshake":         {join(plain, handshake), 0, false},
		"tickets":                  {join(plain, handshake, first, second), 2, false},
		"a number is missing":      {join(handshake, second), 0, false}, // opens nothing: it is another key's
		"a handshake's after ours": {join(first, handshake), 0, true},
		"in the clear after ours":  {join(first, plain), 0, true},
		"twice":                    {join(first, first), 0, true},
		"half a record":            {join(first, second[:10]), 0, true},
		"half a header":            {handshake[:3], 0, true},
	} {
		var p Pool
		k := fresh()
		err := (&under{pool: &p, sent: c.sent}).sealedWith(k)
		if errors.Is(err, errState) != c.bad || (!c.bad && k.seq != c.seq) {
			t.Errorf("%s: %v, %d", name, err, k.seq)
		}
	}
	var p Pool
	u := &under{pool: &p, secrets: &secrets{client: make([]byte, 32), server: make([]byte, 32)}, left: 1}
	if _, err := p.takeOver(u, tls.ConnectionState{CipherSuite: tls.TLS_AES_128_GCM_SHA256}, true); !errors.Is(err, errState) {
		t.Errorf("in the middle of a record: %v", err)
	}
}

// After the handshake the secrets that crypto/tls gave us, and what it keeps, are
// gone from what a connection holds.
func TestNothingOfTheHandshakeIsKept(t *testing.T) {
	client, server := established(t, 0)
	for _, c := range []*Conn{client, server} {
		cs := c.ConnectionState()
		if c.tls != nil || cs.Version != tls.VersionTLS13 || !cs.HandshakeComplete || len(cs.PeerCertificates) == 0 {
			t.Errorf("%+v", cs)
		}
		if c.LocalAddr() == nil || c.RemoteAddr() == nil {
			t.Error("no addresses")
		}
	}
	var s secrets
	_, _ = s.Write([]byte("CLIENT_TRAFFIC_SECRET_0 00 0102\n"))
	held := s.client
	s.forget()
	if !bytes.Equal(held, []byte{0, 0}) || s.client != nil {
		t.Error("a secret is still there")
	}
}

// A handshake with somebody who speaks no TLS fails, and nothing is kept of it.
func TestNoHandshake(t *testing.T) {
	for _, said := range []string{"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x02\x00", "\x16\x03\x01\x00\x05hello\x17\x03\x03\x00\x01x", ""} {
		a, b := tcpPair(t)
		_, sc := configs(t, "")
		if _, err := a.Write([]byte(said)); err != nil {
			t.Fatal(err)
		}
		_ = a.CloseWrite()
		var p Pool
		if c, err := p.Server(b, nil, sc, nowPlus(t)); err == nil || c != nil {
			t.Errorf("%q was a handshake", said)
		}
		b.Close()
		if _, err := io.Copy(io.Discard, a); err != nil && said == "" {
			t.Error(err)
		}
	}
}
