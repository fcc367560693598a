package proxy

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"podseal.io/podseal/internal/wire"
)

const (
	serverField = "server: istio-envoy\r\n"
	httpDate    = "Mon, 02 Jan 2006 15:04:05 GMT"
)

// appendLower appends a field name as it stands on the wire: in lower case
// (contract 2.51).
func appendLower(b, name []byte) []byte {
	for _, c := range name {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		b = append(b, c)
	}
	return b
}

// requestFields is what appendRequest has seen among a request's fields.
type requestFields struct {
	length, host, requestID, proto, decorated bool
	xfcc                                      []byte
}

// appendRequest appends the head as the application gets it, and reports
// whether the request came with x-envoy-decorator-operation.
func (h *httpRelay) appendRequest(b []byte, r *wire.RequestHead) (head []byte, decorated bool, err error) {
	b = append(append(b, r.Method...), ' ')
	b = append(append(b, r.Path...), " HTTP/1."...)
	b = append(strconv.AppendInt(b, int64(r.Minor), 10), "\r\n"...)
	var seen requestFields
	upgrade := upgradeOf(r)
	for _, f := range r.Fields {
		b = h.appendRequestField(b, f, r, &seen)
	}
	if !seen.host && len(r.Host) > 0 {
		b = append(append(append(b, "host: "...), r.Host...), "\r\n"...)
	}
	if !seen.proto {
		b = append(b, "x-forwarded-proto: http\r\n"...) // contract 2.44
	}
	if !seen.requestID {
		if b, err = h.appendRequestID(b); err != nil {
			return nil, false, err
		}
	}
	if h.PeerURI != "" {
		b = h.appendXFCC(b, seen.xfcc)
	}
	if upgrade != nil {
		b = append(append(append(b, "connection: upgrade\r\nupgrade: "...), upgrade...), "\r\n"...)
	}
	return append(b, "\r\n"...), seen.decorated, nil
}

// upgradeOf is the protocol that the client asks to change to, if the
// application is to hear of it. An offer of h2c, also as one of several, is
// dropped: what followed would be requests that nobody has read (contract 2.51).
func upgradeOf(r *wire.RequestHead) []byte {
	for offers, more := r.Upgrade, true; more; {
		var offer []byte
		offer, offers, more = bytes.Cut(offers, []byte{','})
		name, _, _ := bytes.Cut(offer, []byte{'/'}) // the rest is a version (RFC 9110 7.8)
		if (wire.Field{Name: bytes.Trim(name, " \t")}).Is("h2c") {
			return nil
		}
	}
	return r.Upgrade
}

func (h *httpRelay) appendRequestField(b []byte, f wire.Field, r *wire.RequestHead, seen *requestFields) []byte {
	start := len(b)
	b = appendLower(b, f.Name)
	value := f.Value
	drop := false
	switch string(b[start:]) {
	case "host":
		seen.host = true
		if string(r.Method) != "CONNECT" {
			value = r.Host
		}
	case "content-length": // equal ones are allowed to come twice, and are sent once
		drop, seen.length = seen.length, true
	case "x-request-id":
		seen.requestID = true
	case "x-forwarded-proto":
		seen.proto = true
	case wire.ClientCertField: // contract 2.46, 2.47
		drop = true
		if h.PeerURI != "" && len(value) > 0 && quotesClose(value) {
			if len(seen.xfcc) > 0 {
				seen.xfcc = append(seen.xfcc, ',')
			}
			seen.xfcc = append(seen.xfcc, value...)
		}
	case "x-envoy-decorator-operation": // contract 2.40
		drop, seen.decorated = true, true
	case "te":
		drop = !(wire.Field{Name: value}).Is("trailers")
	case "http2-settings", "connection", "keep-alive", "proxy-connection", "upgrade": // contract 2.51
		drop = true
	default:
		drop = proxyOnly(b[start:]) || wire.IsClientCert(b[start:]) // by another spelling
	}
	if drop {
		return b[:start]
	}
	return append(append(append(b, ": "...), value...), "\r\n"...)
}

// proxyOnly reports whether a field, whose name is in lower case, is what only a
// proxy may say and only another one is to hear (contract 2.41, 2.52).
func proxyOnly[S string | []byte](name S) bool {
	if len(name) < len("x-envoy-") || name[2] != 'e' {
		return false
	}
	switch string(name) {
	case "x-envoy-peer-metadata", "x-envoy-peer-metadata-id",
		"x-envoy-retry-on", "x-envoy-retry-grpc-on", "x-envoy-max-retries", "x-envoy-retriable-status-codes", "x-envoy-retriable-header-names",
		"x-envoy-upstream-rq-timeout-ms", "x-envoy-upstream-rq-per-try-timeout-ms", "x-envoy-upstream-rq-timeout-alt-response",
		"x-envoy-upstream-alt-stat-name", "x-envoy-expected-rq-timeout-ms", "x-envoy-hedge-on-per-try-timeout",
		"x-envoy-force-trace", "x-envoy-internal", "x-envoy-ip-tags", "x-envoy-original-path", "x-envoy-original-url",
		"x-envoy-downstream-service-cluster", "x-envoy-downstream-service-node":
		return true
	}
	return false
}

// quotesClose reports whether every quote in a value is closed again, by readers that
// know escapes and by those that don't. Behind an open one our own element would
// be taken for a part of the client's.
func quotesClose(value []byte) bool {
	var inside, escaped, plain bool
	for _, c := range value {
		switch {
		case escaped:
			escaped = false
		case c == '\\' && inside:
			escaped = true
		case c == '"':
			inside = !inside
		}
		if c == '"' {
			plain = !plain
		}
	}
	return !inside && !plain
}

// appendXFCC appends what this proxy knows of its peer to what the client sent
// (contract 2.46). Only the last element is ours.
func (h *httpRelay) appendXFCC(b, sent []byte) []byte {
	b = append(b, "x-forwarded-client-cert: "...)
	if len(sent) > 0 {
		b = append(append(b, sent...), ',')
	}
	return append(appendElement(b, h.OwnURI, h.PeerCertHash, h.PeerURI, h.PeerNames), "\r\n"...)
}

// peerNames are what a certificate says of its owner beside the identity; mesh
// certificates say nothing.
type peerNames struct {
	Subject string   // as RFC 2253 writes it
	DNS     []string // in order
}

// hostBytes are those of a DNS name, with a wildcard.
const hostBytes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._*"

// namesIn reads them. What can't stand in a field, or would be read as another part
// of one, is left out.
func namesIn(cert *x509.Certificate) peerNames {
	var n peerNames
	if subject := cert.Subject.String(); !strings.ContainsFunc(subject, func(c rune) bool { return c < ' ' || c > '~' || c == '"' }) {
		n.Subject = subject
	}
	for _, name := range cert.DNSNames {
		if strings.Trim(name, hostBytes) == "" {
			n.DNS = append(n.DNS, name)
		}
	}
	return n
}

// appendElement appends the element itself (contract 2.46).
func appendElement(b []byte, own, hash, peer string, names peerNames) []byte {
	b = append(append(b, "By="...), own...)
	b = append(append(b, ";Hash="...), hash...)
	b = append(append(b, `;Subject="`...), names.Subject...)
	b = append(append(b, `";URI=`...), peer...)
	for _, name := range names.DNS {
		b = append(append(b, ";DNS="...), name...)
	}
	return b
}

func (h *httpRelay) appendRequestID(b []byte) ([]byte, error) {
	if h.randomLeft < len(h.id) {
		if _, err := io.ReadFull(h.Rand, h.random[:]); err != nil {
			return nil, fmt.Errorf("make request id: %w", err)
		}
		h.randomLeft = len(h.random)
	}
	h.randomLeft -= copy(h.id[:], h.random[len(h.random)-h.randomLeft:])
	b = appendUUID(append(b, "x-request-id: "...), &h.id)
	return append(b, "\r\n"...), nil
}

// appendUUID makes a UUID, version 4 (contract 2.43, RFC 9562), of random bytes and
// appends it.
func appendUUID(b []byte, id *[16]byte) []byte {
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	for i, part := range [...][]byte{id[:4], id[4:6], id[6:8], id[8:10], id[10:]} {
		if i > 0 {
			b = append(b, '-')
		}
		b = hex.AppendEncode(b, part)
	}
	return b
}

// appendInterim appends a 1xx head as the client gets it (contract 2.58).
func appendInterim(b []byte, r *wire.ResponseHead) []byte {
	b = appendStatusLine(b, 1, r)
	for _, f := range r.Fields {
		b, _ = appendResponseField(b, f, r, &responseFields{})
	}
	return append(b, "\r\n"...)
}

func appendStatusLine(b []byte, minor int, r *wire.ResponseHead) []byte {
	b = append(b, "HTTP/1."...)
	b = append(strconv.AppendInt(b, int64(minor), 10), ' ')
	b = append(strconv.AppendInt(b, int64(r.Status), 10), ' ')
	return append(append(b, r.Reason...), "\r\n"...)
}

// responseFields is what appendResponse has seen among a response's fields.
type responseFields struct{ server, date, length bool }

// appendResponse appends a final head as the client gets it, in Envoy's order:
// the application's fields in theirs, `server` in its place (contract 2.37), then
// x-envoy-upstream-service-time (contract 2.39), connection, and for a peer that
// isn't a proxy x-envoy-decorator-operation (contract 2.40).
func (h *httpRelay) appendResponse(b []byte, r *wire.ResponseHead, ex *httpExchange, now time.Time) []byte {
	b = appendStatusLine(b, ex.minor, r)
	var seen responseFields
	reply := h.asked.Reply
	for _, f := range r.Fields {
		if len(reply) > 0 && replaces(reply, f.Name) {
			continue
		}
		var server bool
		if b, server = appendResponseField(b, f, r, &seen); server && !seen.server {
			seen.server = true
			b = append(b, serverField...)
		}
	}
	b = appendServiceTime(b, now.Sub(ex.sent))
	if !seen.date {
		b = h.appendDate(b, now)
	}
	if !seen.server {
		b = append(b, serverField...)
	}
	for i := range reply {
		if reply[i].Put {
			b = appendField(b, reply[i].Name, reply[i].Value)
		}
	}
	switch {
	case r.Status == 101:
		b = append(append(append(b, "connection: upgrade\r\nupgrade: "...), r.Upgrade...), "\r\n"...)
	case !ex.keep && !ex.tunnel:
		b = append(b, "connection: close\r\n"...)
	}
	return append(h.appendDecorator(b, ex), "\r\n"...)
}

// appendResponseField appends one field, or nothing if the client is not to see
// it. It reports whether it is the application's `server`.
func appendResponseField(b []byte, f wire.Field, r *wire.ResponseHead, seen *responseFields) (out []byte, server bool) {
	start := len(b)
	b = appendLower(b, f.Name)
	switch string(b[start:]) {
	case "server":
		return b[:start], true
	case "date":
		seen.date = true
	case "content-length":
		if seen.length || unframed(r) {
			return b[:start], false
		}
		seen.length = true
	case "transfer-encoding":
		if unframed(r) {
			return b[:start], false
		}
	case "connection", "keep-alive", "proxy-connection", "upgrade", "x-envoy-upstream-service-time", "x-envoy-decorator-operation":
		return b[:start], false
	}
	return append(append(append(b, ": "...), f.Value...), "\r\n"...), false
}

// unframed reports whether a response must not say how long it is (RFC 9110 8.6).
func unframed(r *wire.ResponseHead) bool {
	return r.Status < 200 || r.Status == 204 || r.Body.Kind == wire.TunnelBody
}

func appendServiceTime(b []byte, took time.Duration) []byte {
	b = append(b, "x-envoy-upstream-service-time: "...)
	return append(strconv.AppendInt(b, max(0, took.Milliseconds()), 10), "\r\n"...)
}

func (h *httpRelay) appendDate(b []byte, now time.Time) []byte {
	if second := now.Unix(); h.date == nil || second != h.dateOf {
		h.date = append(now.UTC().AppendFormat(append(h.date[:0], "date: "...), httpDate), "\r\n"...)
		h.dateOf = second
	}
	return append(b, h.date...)
}

func (h *httpRelay) appendDecorator(b []byte, ex *httpExchange) []byte {
	if h.PeerURI != "" || ex.decorated || h.Decorator == "" {
		return b
	}
	return append(append(append(b, "x-envoy-decorator-operation: "...), h.Decorator...), "\r\n"...)
}

// localReply is a response that this proxy makes itself.
type localReply struct {
	status           int
	reason, body     string
	header           []headField
	flag             string // Envoy's
	routed, upstream bool   // the request had a route; the application failed
}

// answerDetails is what Envoy would say of an answer of our own with this flag.
func answerDetails(flag string) string {
	switch flag {
	case "UF":
		return "upstream_reset_before_response_started{remote_connection_failure}"
	case "UC":
		return "upstream_reset_before_response_started{connection_termination}"
	case "UPE":
		return "upstream_reset_before_response_started{protocol_error}"
	case "DPE":
		return "http1.codec_error"
	default:
		return "direct_response"
	}
}

// appendLocal appends a response of our own.
func (h *httpRelay) appendLocal(b []byte, ex *httpExchange, a *localReply, now time.Time) []byte {
	b = append(b, "HTTP/1."...)
	b = append(strconv.AppendInt(b, int64(ex.minor), 10), ' ')
	b = append(strconv.AppendInt(b, int64(a.status), 10), ' ')
	b = append(append(b, a.reason...), "\r\ncontent-length: "...)
	b = append(strconv.AppendInt(b, int64(len(a.body)), 10), "\r\n"...)
	if a.body != "" && !slices.ContainsFunc(a.header, func(f headField) bool { return f.Name == "content-type" }) {
		b = append(b, "content-type: text/plain\r\n"...)
	}
	for _, f := range a.header {
		b = appendField(b, f.Name, f.Value)
	}
	b = h.appendDate(b, now)
	b = append(b, serverField...)
	if a.upstream {
		b = appendServiceTime(b, now.Sub(ex.sent))
	}
	if !ex.keep {
		b = append(b, "connection: close\r\n"...)
	}
	if a.routed {
		b = h.appendDecorator(b, ex)
	}
	b = append(b, "\r\n"...)
	if ex.method != "HEAD" {
		b = append(b, a.body...)
	}
	return b
}

func appendField(b []byte, name, value string) []byte {
	return append(append(append(append(b, name...), ": "...), value...), "\r\n"...)
}
