package proof

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const (
	client  = "10.0.0.1:40000"
	server  = "10.0.0.2:80"
	request = "GET / HTTP/1.1\r\nHost: webserver\r\n\r\n"
	page    = "HTTP/1.1 200 OK\r\nserver: istio-envoy\r\n\r\nWelcome to nginx!"
)

var needles = []string{"GET / HTTP", "Welcome to nginx", "istio-envoy", "not there"}

func read(t testing.TB, r io.Reader) Summary {
	t.Helper()
	s, err := Read(r, Options{Needles: needles})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// one returns the only flow of a conversation.
func one(t testing.TB, k *talk) Flow {
	t.Helper()
	r := record(linkEthernet)
	for _, p := range k.packets {
		r.frame(p)
	}
	s := read(t, r)
	if len(s.Flows) != 1 || s.Packets != len(k.packets) || s.TCP != s.Packets {
		t.Fatalf("got %s", s)
	}
	return s.Flows[0]
}

func plainHTTP() *talk {
	return newTalk(client, server).open().say(fromClient, []byte(request)).say(fromServer, []byte(page)).close()
}

func meshConfig() *tls.Config {
	return &tls.Config{ServerName: "outbound_.80_._.webserver.shop.svc.cluster.local", NextProtos: []string{"podseal", "istio"}}
}

func TestTLS(t *testing.T) {
	long := strings.Repeat("Welcome to nginx! ", 5000)
	for name, tt := range map[string]struct {
		client, server *tls.Config
		kind           Kind
		version        uint16
		group          tls.CurveID
	}{
		"mesh":     {meshConfig(), &tls.Config{}, MeshTLS, tls.VersionTLS13, tls.X25519MLKEM768},
		"mesh 1.2": {meshConfig(), &tls.Config{MaxVersion: tls.VersionTLS12}, MeshTLS, tls.VersionTLS12, 0},
		"hello retry": {
			&tls.Config{NextProtos: []string{"istio-http/1.1"}, CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP384}},
			&tls.Config{CurvePreferences: []tls.CurveID{tls.CurveP384}}, MeshTLS, tls.VersionTLS13, tls.CurveP384,
		},
		"foreign":           {&tls.Config{ServerName: "example.com", NextProtos: []string{"h2"}}, &tls.Config{NextProtos: []string{"h2"}}, ForeignTLS, tls.VersionTLS13, tls.X25519MLKEM768},
		"foreign, no names": {&tls.Config{}, &tls.Config{}, ForeignTLS, tls.VersionTLS13, tls.X25519MLKEM768},
	} {
		t.Run(name, func(t *testing.T) {
			all := overTLS(t, tt.client, tt.server, request, long)
			f := one(t, newTalk(client, server).open().sayAll(all).close())
			if f.Kind != tt.kind || f.SNI != tt.client.ServerName || !slices.Equal(f.ALPN, tt.client.NextProtos) {
				t.Errorf("got %v, SNI %q, ALPN %q", f.Kind, f.SNI, f.ALPN)
			}
			if f.TLSVersion != tt.version || f.Group != tt.group || f.Cipher == 0 {
				t.Errorf("got version %#x, group %v, cipher %#x", f.TLSVersion, f.Group, f.Cipher)
			}
			if f.Sent.TLSBytes != size(all, fromClient) || f.Received.TLSBytes != size(all, fromServer) || f.PlainBytes() != 0 || !f.Complete() {
				t.Errorf("bytes: %+v", f)
			}
			if r := f.Records(); r[Handshake] < 2 || r[ApplicationData] < 6 {
				t.Errorf("records: %v", r)
			}
			if len(f.Sent.Needles)+len(f.Received.Needles) != 0 {
				t.Errorf("needles found: %v %v", f.Sent.Needles, f.Received.Needles)
			}
			if !f.Opened || f.Reset {
				t.Errorf("opened %v, reset %v", f.Opened, f.Reset)
			}
		})
	}
}

func TestPlaintext(t *testing.T) {
	for name, tt := range map[string]struct {
		talk     *talk
		protocol string
	}{
		"HTTP/1.1":     {plainHTTP(), "HTTP/1.1"},
		"HTTP/1.0":     {newTalk(client, server).open().say(fromClient, []byte("GET / HTTP/1.0\r\n\r\n")), "HTTP/1.0"},
		"h2c":          {newTalk(client, server).open().say(fromClient, []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00")), "h2c"},
		"server first": {newTalk(client, server).open().say(fromServer, []byte("220 mail.example ESMTP\r\n")), "other"},
		"nearly TLS":   {newTalk(client, server).open().say(fromClient, []byte("\x16\x03\x01\xff\xff...")), "other"},
		"short":        {newTalk(client, server).open().say(fromClient, []byte("\x16")), "other"},
		"answer only":  {newTalk(client, server).open().say(fromServer, []byte(page)), "HTTP/1.1"},
	} {
		t.Run(name, func(t *testing.T) {
			f := one(t, tt.talk)
			if f.Kind != Plaintext || f.Protocol != tt.protocol || f.TLSBytes() != 0 || f.PlainBytes() == 0 {
				t.Errorf("got %v (%s), %d bytes of TLS, %d of plaintext", f.Kind, f.Protocol, f.TLSBytes(), f.PlainBytes())
			}
		})
	}
	f := one(t, plainHTTP())
	if diff := cmp.Diff(map[string]int{"GET / HTTP": 1}, f.Sent.Needles); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]int{"Welcome to nginx": 1, "istio-envoy": 1}, f.Received.Needles); diff != "" {
		t.Error(diff)
	}
	if f.Sent.PlainBytes != int64(len(request)) || f.Received.PlainBytes != int64(len(page)) {
		t.Errorf("bytes %d and %d", f.Sent.PlainBytes, f.Received.PlainBytes)
	}
}

// TestPlaintextAmongTLS: what is not in a record counts as plaintext, wherever it is.
func TestPlaintextAmongTLS(t *testing.T) {
	all := overTLS(t, meshConfig(), &tls.Config{}, request, page)
	f := one(t, newTalk(client, server).open().sayAll(all).say(fromServer, []byte(page)).close())
	if f.Kind != MeshTLS || f.Received.PlainBytes != int64(len(page)) || f.Received.Needles["Welcome to nginx"] != 1 {
		t.Errorf("got %v, %d bytes of plaintext", f.Kind, f.Received.PlainBytes)
	}
	f = one(t, newTalk(client, server).open().say(fromClient, all[0].text).say(fromServer, []byte("HTTP/1.0 400 Bad Request\r\n\r\n")))
	if f.Kind != MeshTLS || f.PlainBytes() != 28 {
		t.Errorf("got %v, %d bytes of plaintext", f.Kind, f.PlainBytes())
	}
}

func TestReset(t *testing.T) {
	f := one(t, newTalk(client, server).open().say(fromClient, []byte(request)).segment(fromServer, flagRST|flagACK, nil))
	if !f.Reset || f.ResetBy != "server" || f.Kind != Plaintext {
		t.Errorf("got %+v", f)
	}
	f = one(t, newTalk(client, server).segment(fromClient, flagSYN, nil).segment(fromServer, flagRST|flagACK, nil))
	if !f.Reset || f.ResetBy != "server" || f.Opened || f.Kind != Empty {
		t.Errorf("refused: %+v", f)
	}
	f = one(t, newTalk(client, server).open().segment(fromClient, flagRST, []byte("why")))
	if f.ResetBy != "client" || f.PlainBytes() != 0 {
		t.Errorf("by client: %+v", f)
	}
}

// TestFormats: every link type, family, byte order and precision gives the same.
func TestFormats(t *testing.T) {
	for _, link := range []uint32{linkEthernet, linkSLL, linkSLL2, linkRaw, linkRawOld, linkIPv4, linkIPv6} {
		for _, six := range []bool{false, true} {
			if six && link == linkIPv4 || !six && link == linkIPv6 {
				continue
			}
			from, to := client, server
			if six {
				from, to = "[fd00::1]:40000", "[fd00::2]:80"
			}
			k := newTalk(from, to).open().say(fromClient, []byte(request)).say(fromServer, []byte(page)).close()
			for _, r := range []*recorder{
				{order: binary.LittleEndian},
				{order: binary.BigEndian},
				{order: binary.LittleEndian, nano: true},
				{order: binary.BigEndian, nano: true},
				{order: binary.LittleEndian, vlan: true},
			} {
				r.link = link
				recordAs(r)
				for _, p := range k.packets {
					r.frame(p)
				}
				s := read(t, r)
				if len(s.Flows) != 1 || s.Flows[0].Client.String() != from || s.Flows[0].PlainBytes() != int64(len(request)+len(page)) || s.Undecoded != 0 {
					t.Errorf("link %d, nano %v, %v: %s", link, r.nano, r.order, s)
					continue
				}
				if want := "2026-11-01T12:00:00.001Z"; s.Start.Format("2006-01-02T15:04:05.999Z07:00") != want || !s.Flows[0].Start.Equal(s.Start) {
					t.Errorf("start %v", s.Start)
				}
			}
		}
	}
}

// TestOrder: however packets are swapped, repeated, cut anew or captured on several
// interfaces, the sums are the same.
func TestOrder(t *testing.T) {
	k := newTalk(client, server).open().sayAll(overTLS(t, meshConfig(), &tls.Config{}, request, strings.Repeat(page, 1000))).close()
	want := one(t, k)
	ignore := cmpopts.IgnoreFields(Flow{}, "Start", "End")
	compare := cmpopts.EquateComparable(want.Client)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 200 {
		packets := slices.Clone(k.packets)
		for range rnd.IntN(40) {
			at := 3 + rnd.IntN(len(packets)-3)
			packets = slices.Insert(packets, at, packets[rnd.IntN(len(packets))]) // again
		}
		for range rnd.IntN(40) {
			at := 3 + rnd.IntN(len(packets)-4)
			to := min(len(packets)-1, at+rnd.IntN(5))
			packets[at], packets[to] = packets[to], packets[at]
		}
		got := one(t, &talk{packets: packets})
		if diff := cmp.Diff(want, got, ignore, compare); diff != "" {
			t.Fatalf("run %d: %s", i, diff)
		}
	}
}

// TestOverlap: a retransmission that begins earlier and ends later adds only its end.
func TestOverlap(t *testing.T) {
	k := newTalk(client, server).open().say(fromClient, []byte("GET / HT"))
	k.next[fromClient] -= 4
	k.say(fromClient, []byte("/ HTTP/1.1\r\n\r\n"))
	f := one(t, k)
	if f.Sent.PlainBytes != 18 || f.Sent.LostBytes != 0 {
		t.Errorf("got %+v", f.Sent)
	}
}

func TestNeedleAcrossSegments(t *testing.T) {
	k := newTalk(client, server).open()
	for _, c := range []byte("GET / HTTP GET / HTTP Welcome to nginx") {
		k.say(fromClient, []byte{c})
	}
	f := one(t, k)
	if diff := cmp.Diff(map[string]int{"GET / HTTP": 2, "Welcome to nginx": 1}, f.Sent.Needles); diff != "" {
		t.Error(diff)
	}
}

// TestLoss: what was not captured is counted, and never taken for encrypted.
func TestLoss(t *testing.T) {
	all := overTLS(t, meshConfig(), &tls.Config{}, request, strings.Repeat(page, 2000))
	whole := newTalk(client, server).open().sayAll(all).close()
	total := size(all, fromClient) + size(all, fromServer)
	for drop := 3; drop < len(whole.packets); drop++ {
		k := &talk{packets: slices.Delete(slices.Clone(whole.packets), drop, drop+1)}
		f := one(t, k)
		sum := f.TLSBytes() + f.PlainBytes() + f.Sent.LostBytes + f.Sent.Unsorted + f.Received.LostBytes + f.Received.Unsorted
		// the last segment of a direction leaves no gap behind
		if sum > total || sum < total-1400 || f.PlainBytes() != 0 && f.Complete() {
			t.Errorf("without packet %d: %d of %d bytes accounted for, %d plaintext", drop, sum, total, f.PlainBytes())
		}
	}
	r := recordAs(&recorder{order: binary.LittleEndian, link: linkEthernet, snap: 100})
	for _, p := range whole.packets {
		r.frame(p)
	}
	s := read(t, r)
	if f := s.Flows[0]; f.Complete() || f.Received.LostBytes == 0 {
		t.Errorf("with 100 bytes of each packet: %s", s)
	}
}

func TestJoinedLate(t *testing.T) {
	all := overTLS(t, meshConfig(), &tls.Config{}, request, page)
	k := newTalk("10.0.0.1:40000", "10.0.0.2:443")
	f := one(t, k.sayAll(all[len(all)-2:]))
	if f.Kind != UnknownTLS || f.Server.Port() != 443 || f.Opened || f.PlainBytes() != 0 {
		t.Errorf("got %+v", f)
	}
	// the SYN-ACK tells who is who even if it is the first
	k = newTalk("10.0.0.1:80", "10.0.0.2:40000")
	f = one(t, k.segment(fromServer, flagSYN|flagACK, nil).say(fromClient, []byte(request)))
	if f.Server.String() != "10.0.0.2:40000" || f.Sent.PlainBytes != int64(len(request)) {
		t.Errorf("got %+v", f)
	}
	// and when it comes after data
	k = newTalk("10.0.0.1:80", "10.0.0.2:40000").open().say(fromClient, []byte(request))
	k.packets[0], k.packets[3] = k.packets[3], k.packets[0]
	f = one(t, k)
	if f.Server.String() != "10.0.0.2:40000" || f.Sent.PlainBytes != int64(len(request)) || !f.Opened {
		t.Errorf("got %+v", f)
	}
}

func TestSamePortsAgain(t *testing.T) {
	first := plainHTTP()
	second := newTalk(client, server)
	second.next = [2]uint32{5, 6}
	second.open().say(fromClient, []byte("hello"))
	r := record(linkSLL2)
	for _, p := range append(first.packets, second.packets...) {
		r.frame(p)
		r.frame(p) // as on two interfaces
	}
	s := read(t, r)
	if len(s.Flows) != 2 || s.Flows[0].Sent.PlainBytes != int64(len(request)) || s.Flows[1].Sent.PlainBytes != 5 {
		t.Errorf("got %s", s)
	}
}

func TestLimits(t *testing.T) {
	r := record(linkRaw)
	for port := range 20 {
		for _, p := range newTalk(fmt.Sprintf("10.0.0.1:%d", 1000+port), server).open().packets {
			r.frame(p)
		}
	}
	s, err := Read(r, Options{MaxFlows: 10})
	if !errors.Is(err, ErrTooMany) || len(s.Flows) != 10 {
		t.Errorf("got %d flows, %v", len(s.Flows), err)
	}
	// a gap that is never filled doesn't hold on to what follows
	k := newTalk(client, server).open()
	k.next[fromClient] += 10
	for range 2000 {
		k.say(fromClient, make([]byte, 1400))
	}
	f := one(t, k)
	if f.Sent.LostBytes != 10 || f.Sent.PlainBytes != 2000*1400 {
		t.Errorf("got %+v", f.Sent)
	}
	// nor do bytes far ahead
	k = newTalk(client, server).open().say(fromClient, []byte("a"))
	k.next[fromClient] += maxAhead + 1
	if f := one(t, k.say(fromClient, []byte("b"))); f.Sent.PlainBytes != 2 || f.Sent.LostBytes != maxAhead+1 {
		t.Errorf("got %+v", f.Sent)
	}
}

func TestNotTCP(t *testing.T) {
	udp := packet(newTalk(client, server).client, newTalk(client, server).server, 1, 0, []byte(request))
	udp[9] = 17
	part := slices.Clone(udp)
	part[9], part[6] = protoTCP, 0x20
	short := packet(newTalk(client, server).client, newTalk(client, server).server, 1, 0, nil)[:30]
	r := record(linkEthernet)
	r.frame(udp)
	r.frame(part)
	r.frame(short)
	r.raw([]byte("short"))
	r.raw(append(make([]byte, 12), 0x08, 0x06, 0, 0)) // ARP
	s := read(t, r)
	if s.Packets != 5 || s.TCP != 0 || s.Fragments != 1 || s.Undecoded != 2 || len(s.Flows) != 0 {
		t.Errorf("got %+v", s)
	}
}

func TestNotPcap(t *testing.T) {
	good := record(linkEthernet).Bytes()
	change := func(at int, b ...byte) []byte {
		c := slices.Clone(good)
		copy(c[at:], b)
		return c
	}
	for name, file := range map[string][]byte{
		"empty": {}, "text": []byte("<html><body>not found</body></html>"), "pcapng": {0x0a, 0x0d, 0x0d, 0x0a, 24: 0},
		"version": change(4, 3), "link type": change(20, 9),
		"huge packet": append(slices.Clone(good), 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0),
	} {
		if _, err := Read(bytes.NewReader(file), Options{}); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCutAtEveryByte: a capture that breaks off is summed up to there, with an
// error unless it ends between two packets.
func TestCutAtEveryByte(t *testing.T) {
	r := record(linkEthernet)
	ends := map[int]bool{r.Len(): true}
	for _, p := range plainHTTP().sayAll(overTLS(t, meshConfig(), &tls.Config{}, "a", "b")).packets {
		r.frame(p)
		ends[r.Len()] = true
	}
	file := r.Bytes()
	last := int64(0)
	for n := range file {
		s, err := Read(bytes.NewReader(file[:n]), Options{Needles: needles})
		if ends[n] != (err == nil) || err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("after %d bytes: %v", n, err)
		}
		var sum int64
		for _, f := range s.Flows {
			sum += f.PlainBytes() + f.TLSBytes()
		}
		if sum < last {
			t.Fatalf("after %d bytes there is less than before", n)
		}
		last = sum
	}
	// and a packet that is cut, in a file that isn't
	for _, p := range plainHTTP().packets {
		for n := range p {
			for _, link := range []uint32{linkEthernet, linkSLL, linkSLL2, linkRaw} {
				decode(link, p[:n])
			}
		}
	}
}

func TestText(t *testing.T) {
	r := record(linkEthernet)
	all := overTLS(t, meshConfig(), &tls.Config{}, request, page)
	for _, k := range []*talk{
		plainHTTP(),
		newTalk("10.0.0.3:40001", server).open().say(fromClient, []byte(request)).segment(fromServer, flagRST, nil),
		newTalk("10.0.0.4:40002", server).open().sayAll(all).close(),
	} {
		for _, p := range k.packets {
			r.frame(p)
		}
	}
	s := read(t, r)
	want := fmt.Sprintf(`CLIENT          SERVER       WHAT                  TLS                 SERVER NAME                                       RECORDS                                                TLS BYTES   PLAINTEXT BYTES  END
10.0.0.1:40000  10.0.0.2:80  plaintext (HTTP/1.1)  -                   -                                                 -                                                      0 + 0       35 + 57          -
10.0.0.3:40001  10.0.0.2:80  plaintext (HTTP/1.1)  -                   -                                                 -                                                      0 + 0       35 + 0           reset by server
10.0.0.4:40002  10.0.0.2:80  mesh TLS              1.3 X25519MLKEM768  outbound_.80_._.webserver.shop.svc.cluster.local  2 change-cipher-spec, 2 handshake, 8 application-data  %d + %d  0 + 0            -
%d packets, %d of TCP, 3 connections
found "GET / HTTP" 2 times
found "Welcome to nginx" 1 times
found "istio-envoy" 1 times
`, size(all, fromClient), size(all, fromServer), s.Packets, s.Packets)
	squeeze := func(s string) string { return strings.Join(strings.Fields(s), " ") }
	if diff := cmp.Diff(squeeze(want), squeeze(s.String())); diff != "" {
		t.Errorf("%s\n%s", diff, s)
	}
	if n := len(s.Between(s.Flows[0].Client.Addr(), s.Flows[0].Server).Flows); n != 1 {
		t.Errorf("Between: %d flows", n)
	}
	if err := s.WriteText(failing{}); err == nil {
		t.Error("no error from a writer that fails")
	}
	if got := printable("a\x1b[2J"); strings.Contains(got, "\x1b") {
		t.Errorf("terminal sequence passed on: %q", got)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func FuzzRead(f *testing.F) {
	for _, link := range []uint32{linkEthernet, linkSLL, linkSLL2, linkRaw} {
		r := record(link)
		// every process must have the same seeds, so these hellos are made by hand
		clientHello := "\x16\x03\x01\x00\x2d\x01\x00\x00\x29\x03\x03" + strings.Repeat("r", 32) + "\x00\x00\x02\x13\x01\x01\x00"
		serverHello := "\x16\x03\x03\x00\x38\x02\x00\x00\x34\x03\x03" + strings.Repeat("r", 32) + "\x00\x13\x01\x00\x00\x0c\x00\x2b\x00\x02\x03\x04\x00\x33\x00\x02\x11\xec"
		k := newTalk("10.0.0.3:40000", server).open().say(fromClient, []byte(clientHello)).say(fromServer, []byte(serverHello))
		for _, p := range append(plainHTTP().packets, k.say(fromClient, []byte("\x17\x03\x03\x00\x04data")).close().packets...) {
			r.frame(p)
		}
		s := read(f, bytes.NewReader(r.Bytes()))
		if fl := s.Flows[1]; fl.Kind != ForeignTLS || fl.TLSVersion != tls.VersionTLS13 || fl.Group != tls.X25519MLKEM768 {
			f.Fatalf("seed: %s", s)
		}
		f.Add(r.Bytes())
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		s, err := Read(bytes.NewReader(file), Options{Needles: needles, MaxFlows: 100})
		if err != nil && !errors.Is(err, ErrFormat) && !errors.Is(err, ErrTooMany) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("error of an unknown kind: %v", err)
		}
		for _, fl := range s.Flows {
			if fl.TLSBytes()+fl.PlainBytes() > int64(len(file)) {
				// a capture may say that it holds only a part of a packet, and what is
				// within a record counts as lost
				t.Errorf("more bytes than the file has: %+v", fl)
			}
		}
		_ = s.String()
	})
}
