package proof

import (
	"encoding/binary"
	"net/netip"
)

// segment is one TCP segment as captured.
type segment struct {
	src, dst           netip.AddrPort
	seq                uint32
	syn, ack, fin, rst bool
	payload            []byte
	missing            int // bytes of the payload that were not captured
}

// outcome is what a packet turned out to be.
type outcome int

const (
	isTCP      outcome = iota
	isOther            // not TCP, and so none of our business
	isBroken           // a header that is cut short or contradicts itself
	isFragment         // a part of an IP packet: what it carries is not looked at
)

// Numbers of RFC 791, 8200, 9293 and IEEE 802.
const (
	etherIPv4  = 0x0800
	etherIPv6  = 0x86dd
	etherVLAN  = 0x8100
	etherQinQ  = 0x88a8
	protoTCP   = 6
	hopByHop   = 0
	routing    = 43
	fragment   = 44
	authHeader = 51
	destOpts   = 60

	flagFIN = 1
	flagSYN = 2
	flagRST = 4
	flagACK = 16

	maxExtensions = 8
)

// decode reads one packet of this link type. The payload is a part of b.
func decode(link uint32, b []byte) (segment, outcome) {
	ip, ether, ok := stripLink(link, b)
	if !ok {
		return segment{}, isBroken
	}
	switch ether {
	case etherIPv4:
		return decode4(ip)
	case etherIPv6:
		return decode6(ip)
	}
	return segment{}, isOther
}

// stripLink returns the network packet and its ether type.
func stripLink(link uint32, b []byte) (ip []byte, ether uint16, ok bool) {
	at, typeAt := 0, 0
	switch link {
	case linkEthernet:
		at, typeAt = 14, 12
	case linkSLL:
		at, typeAt = 16, 14
	case linkSLL2:
		at, typeAt = 20, 0
	default:
		if len(b) == 0 {
			return nil, 0, false
		}
		switch b[0] >> 4 {
		case 4:
			return b, etherIPv4, true
		case 6:
			return b, etherIPv6, true
		}
		return nil, 0, false
	}
	if len(b) < at {
		return nil, 0, false
	}
	ether, ip = binary.BigEndian.Uint16(b[typeAt:]), b[at:]
	for range 2 {
		if ether != etherVLAN && ether != etherQinQ {
			break
		}
		if len(ip) < 4 {
			return nil, 0, false
		}
		ether, ip = binary.BigEndian.Uint16(ip[2:]), ip[4:]
	}
	return ip, ether, true
}

func decode4(b []byte) (segment, outcome) {
	if len(b) < 20 || b[0]>>4 != 4 {
		return segment{}, isBroken
	}
	header, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if total == 0 {
		total = len(b) // segmentation is left to the device, and 64 kB exceeded
	}
	if header < 20 || len(b) < header || total < header {
		return segment{}, isBroken
	}
	if b[9] != protoTCP {
		return segment{}, isOther
	}
	if binary.BigEndian.Uint16(b[6:])&0x3fff != 0 { // more fragments, or an offset
		return segment{}, isFragment
	}
	src, dst := netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	return decodeTCP(src, dst, b[header:min(total, len(b))], max(0, total-len(b)))
}

func decode6(b []byte) (segment, outcome) {
	if len(b) < 40 || b[0]>>4 != 6 {
		return segment{}, isBroken
	}
	src, dst := netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
	next, size := b[6], int(binary.BigEndian.Uint16(b[4:]))
	b = b[40:]
	if size == 0 {
		size = len(b) // a jumbogram
	}
	missing := max(0, size-len(b))
	b = b[:min(size, len(b))]
	for range maxExtensions {
		switch next {
		case protoTCP:
			return decodeTCP(src, dst, b, missing)
		case fragment:
			return segment{}, isFragment
		case hopByHop, routing, destOpts, authHeader:
			if len(b) < 8 {
				return segment{}, isBroken
			}
			length := (int(b[1]) + 1) * 8
			if next == authHeader {
				length = (int(b[1]) + 2) * 4
			}
			if len(b) < length {
				return segment{}, isBroken
			}
			next, b = b[0], b[length:]
		default:
			return segment{}, isOther
		}
	}
	return segment{}, isBroken
}

func decodeTCP(src, dst netip.Addr, b []byte, missing int) (segment, outcome) {
	if len(b) < 20 {
		return segment{}, isBroken
	}
	header := int(b[12]>>4) * 4
	if header < 20 || len(b) < header {
		return segment{}, isBroken
	}
	flags := b[13]
	return segment{
		src: netip.AddrPortFrom(src, binary.BigEndian.Uint16(b)),
		dst: netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2:])),
		seq: binary.BigEndian.Uint32(b[4:]),
		syn: flags&flagSYN != 0, ack: flags&flagACK != 0, fin: flags&flagFIN != 0, rst: flags&flagRST != 0,
		payload: b[header:], missing: missing,
	}, isTCP
}
