// Package wire turns bytes into values and back, and does no I/O.
//
// Four formats meet here. A TLS ClientHello is read from the start of a stream
// without consuming it ([ParseClientHello]): which ALPN names the client offers
// decides what happens to the connection (contract 2.9-2.11). SNI and ALPN that
// our own client sends are made by [SNI] and [OutboundALPN]. HTTP/1 is
// recognised ([DetectHTTP]) and its heads are parsed, strictly, into slices of
// the bytes that came ([RequestHead], [ResponseHead], [ChunkTracker]). Resources
// travel between control plane and proxy as deterministic protobuf
// ([AppendWorkload], [ParseWorkload] and their kin).
//
// Invariant: a parser given a prefix of a message says that it needs more, or
// that no continuation can be valid; it never guesses. What it accepts it reads
// as every other strict reader would.
package wire

import (
	"strconv"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/policy"
)

// SNI is the server name that a mesh client sends: service port (not the
// target port), subset or "", and FQDN of the service (contract 3.47).
func SNI(port uint16, subset, host string) string {
	return "outbound_." + strconv.Itoa(int(port)) + "_." + subset + "_." + host
}

// OutboundALPN is what a mesh client offers for a port of this protocol
// (contract 3.48, 3.49), after our own name for a connection of many streams.
// `istio-peer-exchange` is left out, since choosing it obliges both sides to a
// preamble (contract 2.28).
func OutboundALPN(p policy.Protocol) []string {
	switch p {
	case policy.HTTP:
		return []string{identity.ALPNStreams, identity.ALPNHTTP11, identity.ALPNIstio, "http/1.1"}
	case policy.TCP:
		return []string{identity.ALPNStreams, identity.ALPNIstio}
	default:
		return []string{identity.ALPNStreams, identity.ALPNDetect, identity.ALPNIstio}
	}
}
