package capture

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A match is one condition of a rule: text is how nft shows it in an inet table,
// exprs is what the kernel executes.
type match interface {
	text() string
	exprs() []expr.Any
}

type (
	// family matches packets of NFPROTO_IPV4 or NFPROTO_IPV6.
	family byte
	// protocol matches the transport protocol by its number.
	protocol byte
	// port matches the destination port of TCP or UDP.
	port struct {
		proto protocol
		num   uint16
		not   bool
	}
	// device matches the interface by which a packet came or will leave. A name
	// that ends in "+" matches all that begin so.
	device struct {
		out  bool
		name string
	}
	// address matches the destination, or the source, of packets of its family.
	address struct {
		source bool
		in     netip.Prefix
		not    bool
	}
	// owner matches packets by the user, or the group, whose socket sends them.
	owner struct {
		group bool
		id    uint32
		not   bool
	}
	// opening matches the first segment of a TCP connection.
	opening struct{}
	// redirected matches packets of connections whose destination was exchanged.
	redirected struct{ not bool }
)

const (
	ipv4 = family(unix.NFPROTO_IPV4)
	ipv6 = family(unix.NFPROTO_IPV6)
	tcp  = protocol(unix.IPPROTO_TCP)
	udp  = protocol(unix.IPPROTO_UDP)
)

func (f family) text() string {
	if f == ipv6 {
		return "meta nfproto ipv6"
	}
	return "meta nfproto ipv4"
}

func (f family) exprs() []expr.Any { return meta(expr.MetaKeyNFPROTO, false, []byte{byte(f)}) }

func (p protocol) String() string {
	if p == udp {
		return "udp"
	}
	return "tcp"
}

func (p protocol) text() string { return "meta l4proto " + p.String() }

func (p protocol) exprs() []expr.Any { return meta(expr.MetaKeyL4PROTO, false, []byte{byte(p)}) }

func (p port) text() string { return fmt.Sprintf("%s dport %s%d", p.proto, unless(p.not), p.num) }

func (p port) exprs() []expr.Any {
	return append(p.proto.exprs(),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		compare(p.not, binaryutil.BigEndian.PutUint16(p.num)))
}

func (d device) text() string {
	name := d.name
	if begin, ok := strings.CutSuffix(name, "+"); ok {
		name = begin + "*"
	}
	if d.out {
		return fmt.Sprintf("oifname %q", name)
	}
	return fmt.Sprintf("iifname %q", name)
}

func (d device) exprs() []expr.Any {
	key := expr.MetaKeyIIFNAME
	if d.out {
		key = expr.MetaKeyOIFNAME
	}
	if begin, ok := strings.CutSuffix(d.name, "+"); ok {
		return meta(key, false, []byte(begin))
	}
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, d.name)
	return meta(key, false, name)
}

func (a address) text() string {
	family, side, in := "ip", "daddr", a.in.String()
	if a.in.Addr().Is6() {
		family = "ip6"
	}
	if a.source {
		side = "saddr"
	}
	if a.in.IsSingleIP() {
		in = a.in.Addr().String()
	}
	return fmt.Sprintf("%s %s %s%s", family, side, unless(a.not), in)
}

func (a address) exprs() []expr.Any {
	f, size, offset := ipv4, uint32(4), uint32(16)
	if a.source {
		offset = 12
	}
	if a.in.Addr().Is6() {
		f, size, offset = ipv6, 16, 24
		if a.source {
			offset = 8
		}
	}
	es := append(f.exprs(), &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size})
	if !a.in.IsSingleIP() {
		es = append(es, &expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: size,
			Mask: net.CIDRMask(a.in.Bits(), int(size)*8), Xor: make([]byte, size),
		})
	}
	return append(es, compare(a.not, a.in.Addr().AsSlice()))
}

func (o owner) text() string {
	key := "skuid"
	if o.group {
		key = "skgid"
	}
	return fmt.Sprintf("meta %s %s%d", key, unless(o.not), o.id)
}

func (o owner) exprs() []expr.Any {
	key := expr.MetaKeySKUID
	if o.group {
		key = expr.MetaKeySKGID
	}
	return meta(key, o.not, binaryutil.NativeEndian.PutUint32(o.id))
}

// Of the flags of a TCP segment, in the 14th byte of its header.
const (
	flagsAt   = 13
	flagSyn   = 0x02
	flagsMask = 0x01 | flagSyn | 0x04 | 0x10 // FIN, SYN, RST, ACK
)

func (opening) text() string { return "tcp flags syn / fin,syn,rst,ack" }

func (opening) exprs() []expr.Any {
	return append(tcp.exprs(),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: flagsAt, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{flagsMask}, Xor: []byte{0}},
		compare(false, []byte{flagSyn}))
}

// statusDestinationNAT is IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h.
const statusDestinationNAT = 1 << 5

func (r redirected) text() string {
	if r.not {
		return "ct status ! dnat"
	}
	return "ct status dnat"
}

func (r redirected) exprs() []expr.Any {
	none := make([]byte, 4)
	return []expr.Any{
		&expr.Ct{Register: 1, Key: expr.CtKeySTATUS},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(statusDestinationNAT), Xor: none},
		compare(!r.not, none),
	}
}

func unless(not bool) string {
	if not {
		return "!= "
	}
	return ""
}

func meta(key expr.MetaKey, not bool, value []byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, compare(not, value)}
}

func compare(not bool, value []byte) *expr.Cmp {
	op := expr.CmpOpEq
	if not {
		op = expr.CmpOpNeq
	}
	return &expr.Cmp{Op: op, Register: 1, Data: value}
}
