package proof

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"io"
	"math/big"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// recorder makes pcap files.
type recorder struct {
	bytes.Buffer
	order binary.AppendByteOrder
	nano  bool
	link  uint32
	snap  int // captured bytes per packet; 0 is all
	vlan  bool
	at    time.Time
}

func record(link uint32) *recorder {
	return recordAs(&recorder{order: binary.LittleEndian, link: link})
}

func recordAs(r *recorder) *recorder {
	r.at = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	magic := uint32(0xa1b2c3d4)
	if r.nano {
		magic = 0xa1b23c4d
	}
	h := r.order.AppendUint32(nil, magic)
	h = r.order.AppendUint16(h, 2)
	h = r.order.AppendUint16(h, 4)
	h = append(h, make([]byte, 8)...)
	h = r.order.AppendUint32(h, 262144)
	h = r.order.AppendUint32(h, r.link)
	r.Write(h)
	return r
}

// frame adds a packet that holds this IP packet.
func (r *recorder) frame(ip []byte) {
	ether := uint16(etherIPv4)
	if ip[0]>>4 == 6 {
		ether = etherIPv6
	}
	var b []byte
	switch r.link {
	case linkEthernet:
		b = make([]byte, 12)
		if r.vlan {
			b = append(b, 0x81, 0, 0, 7)
		}
		b = binary.BigEndian.AppendUint16(b, ether)
	case linkSLL:
		b = binary.BigEndian.AppendUint16(make([]byte, 14), ether)
	case linkSLL2:
		b = append(binary.BigEndian.AppendUint16(nil, ether), make([]byte, 18)...)
	}
	b = append(b, ip...)
	if r.link == linkEthernet && len(b) < 60 {
		b = append(b, make([]byte, 60-len(b))...) // padding is no payload
	}
	r.raw(b)
}

func (r *recorder) raw(b []byte) {
	r.at = r.at.Add(time.Millisecond)
	fraction := r.at.Nanosecond()
	if !r.nano {
		fraction /= 1000
	}
	here := len(b)
	if r.snap > 0 {
		here = min(here, r.snap)
	}
	h := r.order.AppendUint32(nil, uint32(r.at.Unix()))
	h = r.order.AppendUint32(h, uint32(fraction))
	h = r.order.AppendUint32(h, uint32(here))
	h = r.order.AppendUint32(h, uint32(len(b)))
	r.Write(h)
	r.Write(b[:here])
}

// packet makes an IP packet with a TCP segment.
func packet(src, dst netip.AddrPort, seq uint32, flags byte, payload []byte) []byte {
	t := binary.BigEndian.AppendUint16(nil, src.Port())
	t = binary.BigEndian.AppendUint16(t, dst.Port())
	t = binary.BigEndian.AppendUint32(t, seq)
	t = append(t, 0, 0, 0, 0, 6<<4, flags, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1) // with four bytes of options
	t = append(t, payload...)
	if src.Addr().Is4() {
		ip := binary.BigEndian.AppendUint16([]byte{0x45, 0}, uint16(20+len(t)))
		ip = append(ip, 0, 0, 0x40, 0, 64, protoTCP, 0, 0)
		ip = append(ip, src.Addr().AsSlice()...)
		return append(append(ip, dst.Addr().AsSlice()...), t...)
	}
	ip := binary.BigEndian.AppendUint16([]byte{0x60, 0, 0, 0}, uint16(8+len(t)))
	ip = append(ip, destOpts, 64)
	ip = append(ip, src.Addr().AsSlice()...)
	ip = append(ip, dst.Addr().AsSlice()...)
	return append(append(ip, protoTCP, 0, 1, 4, 0, 0, 0, 0), t...) // with an extension header
}

// talk is a conversation on one connection.
type talk struct {
	client, server netip.AddrPort
	next           [2]uint32 // sequence numbers of client and server
	packets        [][]byte
}

const (
	fromClient = 0
	fromServer = 1
)

func newTalk(client, server string) *talk {
	// sequence numbers run over soon
	return &talk{client: netip.MustParseAddrPort(client), server: netip.MustParseAddrPort(server), next: [2]uint32{0xffffff00, 0xfffffff0}}
}

func (k *talk) segment(who int, flags byte, payload []byte) *talk {
	src, dst := k.client, k.server
	if who == fromServer {
		src, dst = dst, src
	}
	k.packets = append(k.packets, packet(src, dst, k.next[who], flags, payload))
	k.next[who] += uint32(len(payload))
	if flags&(flagSYN|flagFIN) != 0 {
		k.next[who]++
	}
	return k
}

func (k *talk) open() *talk {
	return k.segment(fromClient, flagSYN, nil).segment(fromServer, flagSYN|flagACK, nil).segment(fromClient, flagACK, nil)
}

// say sends text in segments of at most 1400 bytes.
func (k *talk) say(who int, text []byte) *talk {
	for len(text) > 0 {
		n := min(1400, len(text))
		k.segment(who, flagACK, text[:n])
		text = text[n:]
	}
	return k
}

func (k *talk) close() *talk {
	return k.segment(fromClient, flagFIN|flagACK, nil).segment(fromServer, flagFIN|flagACK, nil)
}

// utterance is what one side wrote at once.
type utterance struct {
	who  int
	text []byte
}

func (k *talk) sayAll(all []utterance) *talk {
	for _, u := range all {
		k.say(u.who, u.text)
	}
	return k
}

func size(all []utterance, who int) (n int64) {
	for _, u := range all {
		if u.who == who {
			n += int64(len(u.text))
		}
	}
	return n
}

// overTLS returns what a client and a server of crypto/tls say to each other when
// one sends request and the other response.
func overTLS(t testing.TB, client, server *tls.Config, request, response string) []utterance {
	t.Helper()
	var mu sync.Mutex
	var all []utterance
	note := func(who int, b []byte) {
		mu.Lock()
		defer mu.Unlock()
		all = append(all, utterance{who, bytes.Clone(b)})
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	client = client.Clone()
	client.InsecureSkipVerify = true
	server = server.Clone()
	server.Certificates = []tls.Certificate{certificate(t)}
	var wg sync.WaitGroup
	wg.Go(func() {
		c := tls.Server(noted{b, fromServer, note}, server)
		defer c.Close()
		buf := make([]byte, len(request))
		if _, err := io.ReadFull(c, buf); err != nil {
			t.Error(err)
			return
		}
		if _, err := io.WriteString(c, response); err != nil {
			t.Error(err)
		}
	})
	c := tls.Client(noted{a, fromClient, note}, client)
	if _, err := io.WriteString(c, request); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(c, make([]byte, len(response))); err != nil {
		t.Error(err)
	}
	a.Close()
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return all
}

type noted struct {
	net.Conn
	who  int
	note func(int, []byte)
}

func (n noted) Write(b []byte) (int, error) {
	n.note(n.who, b)
	return n.Conn.Write(b)
}

func certificate(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
