package wire

import (
	"bytes"
	"errors"
	"fmt"
)

// Limits of an HTTP/1 head: what Envoy allows, so that no request passes one
// proxy of a mesh and not the other.
const (
	MaxHead   = 60 << 10 // bytes, start line and final empty line included
	MaxFields = 100
)

// ErrMalformed says that bytes are no HTTP/1, or such that two readers could
// understand them differently.
var ErrMalformed = errors.New("malformed HTTP/1")

// BodyKind says how the end of a body is found (RFC 9112 6.3).
type BodyKind int

// The kinds of bodies.
const (
	NoBody      BodyKind = iota
	LengthBody           // Body.Length bytes
	ChunkedBody          // see ChunkTracker
	CloseBody            // until the connection ends; responses only
	TunnelBody           // no HTTP follows: 101, or 2xx to CONNECT; responses only
)

// Body is how the end of a body is found. Length is in bytes and for LengthBody only.
type Body struct {
	Kind   BodyKind
	Length int64
}

// Field is one header field as it came, without the white space around the value.
type Field struct{ Name, Value []byte }

// Head is what requests and responses share. Its slices point into the parsed
// bytes. A Head may be used again for the next message, without allocation.
type Head struct {
	Minor   int     // of HTTP/1.Minor: 0 or 1
	Fields  []Field // in the order in which they came
	Body    Body
	Close   bool   // the sender won't use the connection for another message
	Upgrade []byte // the Upgrade field if Connection names it, else nil

	length    int64 // Content-Length, or -1
	chunked   bool
	encodings int
	keepAlive bool
	upgrade   bool
	hosts     int
	host      []byte
}

// RequestHead is the head of a request.
type RequestHead struct {
	Head
	Method []byte
	Target []byte // as it came
	Host   []byte // of the target if that is absolute, else of the Host field
	Path   []byte // the target as an origin server gets it (RFC 9112 3.2.1), or host:port for CONNECT
}

// ResponseHead is the head of a response.
type ResponseHead struct {
	Head
	Status int
	Reason []byte
}

// ParseRequestHead reads a head at the start of b into h and returns its length
// with the final empty line. It is strict (RFC 9112, RFC 9110 5): CRLF only,
// single spaces, exactly one Host in HTTP/1.1, no folded lines, no
// Transfer-Encoding but `chunked` and never with Content-Length. Errors are
// ErrShort, ErrTooLarge, or wrap ErrMalformed.
func ParseRequestHead(h *RequestHead, b []byte) (int, error) {
	h.reset()
	h.Method, h.Target, h.Host, h.Path = nil, nil, nil, nil
	line, at, err := nextLine(b, 0, true)
	if err != nil {
		if errors.Is(err, ErrShort) && !plausibleStart(b) {
			return 0, malformed("method")
		}
		return 0, err
	}
	if err := h.requestLine(line); err != nil {
		return 0, err
	}
	n, err := h.fields(b, at, true)
	if err != nil {
		return 0, err
	}
	return n, h.finish()
}

// ParseResponseHead reads a head at the start of b, which answers a request of
// this method, and returns its length. Unlike in requests a bare LF may end a line:
// what is sent on ends in CRLF. Errors are as of ParseRequestHead.
func ParseResponseHead(h *ResponseHead, b []byte, method []byte) (int, error) {
	h.reset()
	h.Status, h.Reason = 0, nil
	line, at, err := nextLine(b, 0, false)
	if err != nil {
		return 0, err
	}
	if err := h.statusLine(line); err != nil {
		return 0, err
	}
	n, err := h.fields(b, at, false)
	if err != nil {
		return 0, err
	}
	return n, h.finish(method)
}

func malformed(what string) error { return fmt.Errorf("%w: %s", ErrMalformed, what) }

func (h *Head) reset() { *h = Head{Fields: h.Fields[:0], length: -1} }

// nextLine returns the line at b[at:] without its end, and where the next one
// begins. Control characters other than tab are refused, also in a line that
// hasn't ended yet: garbage is answered and not waited on.
func nextLine(b []byte, at int, strict bool) (line []byte, next int, err error) {
	rest := b[at:min(len(b), MaxHead)]
	end := bytes.IndexByte(rest, '\n')
	if end < 0 {
		if !clean(bytes.TrimSuffix(rest, []byte{'\r'})) {
			return nil, 0, malformed("control character")
		}
		if len(b) >= MaxHead {
			return nil, 0, ErrTooLarge
		}
		return nil, 0, ErrShort
	}
	line, cr := bytes.CutSuffix(rest[:end], []byte{'\r'})
	if strict && !cr {
		return nil, 0, malformed("line without CR")
	}
	if !clean(line) {
		return nil, 0, malformed("control character")
	}
	return line, at + end + 1, nil
}

// clean reports whether b has no control character but tabs.
func clean(b []byte) bool {
	for _, c := range b {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// Bits of the bytes that may stand in a token (RFC 9110 5.6.2).
const (
	tokenLow  = 0x03ff6cfa00000000
	tokenHigh = 0x57ffffffc7fffffe
)

func isTokenByte(c byte) bool {
	switch {
	case c < 64:
		return tokenLow>>c&1 == 1
	case c < 128:
		return tokenHigh>>(c-64)&1 == 1
	default:
		return false
	}
}

func isToken(b []byte) bool {
	for _, c := range b {
		if !isTokenByte(c) {
			return false
		}
	}
	return len(b) > 0
}

const maxMethod = 64

// plausibleStart reports whether an unfinished line may become a request line.
func plausibleStart(b []byte) bool {
	method, _, _ := bytes.Cut(b, []byte{' '})
	return len(b) == 0 || len(method) <= maxMethod && isToken(method)
}

func (h *RequestHead) requestLine(line []byte) error {
	method, rest, ok := bytes.Cut(line, []byte{' '})
	if !ok || len(method) > maxMethod || !isToken(method) {
		return malformed("method")
	}
	target, version, ok := bytes.Cut(rest, []byte{' '})
	if !ok || len(target) == 0 || bytes.IndexByte(target, '\t') >= 0 {
		return malformed("request line")
	}
	h.Method, h.Target = method, target
	if h.Minor, ok = minorVersion(version); !ok {
		return malformed("version")
	}
	return nil
}

func minorVersion(b []byte) (int, bool) {
	switch string(b) {
	case "HTTP/1.1":
		return 1, true
	case "HTTP/1.0":
		return 0, true
	}
	return 0, false
}

func (h *ResponseHead) statusLine(line []byte) error {
	version, rest, ok := bytes.Cut(line, []byte{' '})
	if !ok {
		return malformed("status line")
	}
	if h.Minor, ok = minorVersion(version); !ok {
		return malformed("version")
	}
	status, reason, _ := bytes.Cut(rest, []byte{' '})
	if len(status) != 3 {
		return malformed("status")
	}
	for _, c := range status {
		if c < '0' || c > '9' {
			return malformed("status")
		}
		h.Status = h.Status*10 + int(c-'0')
	}
	if h.Status < 100 || h.Status > 599 {
		return malformed("status")
	}
	h.Reason = reason
	return nil
}

// fields reads header fields up to the empty line.
func (h *Head) fields(b []byte, at int, strict bool) (int, error) {
	for {
		line, next, err := nextLine(b, at, strict)
		if err != nil {
			return 0, err
		}
		if len(line) == 0 {
			return next, nil
		}
		if len(h.Fields) == MaxFields {
			return 0, ErrTooLarge
		}
		name, value, ok := bytes.Cut(line, []byte{':'})
		if !ok || !isToken(name) { // a folded line begins with white space, which is no token
			return 0, malformed("header field name")
		}
		f := Field{Name: name, Value: bytes.Trim(value, " \t")}
		h.Fields = append(h.Fields, f)
		if err := h.note(f); err != nil {
			return 0, err
		}
		at = next
	}
}

// note keeps what a field says of the message itself.
func (h *Head) note(f Field) error {
	switch len(f.Name) {
	case len("host"):
		if f.Is("host") {
			h.hosts++
			h.host = f.Value
		}
	case len("upgrade"):
		if f.Is("upgrade") {
			h.Upgrade = f.Value
		}
	case len("connection"):
		if f.Is("connection") {
			h.noteConnection(f.Value)
		}
	case len("content-length"):
		if f.Is("content-length") {
			n, ok := parseLength(f.Value)
			if !ok || h.length >= 0 && h.length != n {
				return malformed("Content-Length")
			}
			h.length = n
		}
	case len("transfer-encoding"):
		if f.Is("transfer-encoding") {
			h.encodings++
			h.chunked = equalFold(f.Value, "chunked")
		}
	}
	return nil
}

func (h *Head) noteConnection(list []byte) {
	for more := true; more; {
		var option []byte
		option, list, more = bytes.Cut(list, []byte{','})
		switch option = bytes.Trim(option, " \t"); {
		case equalFold(option, "close"):
			h.Close = true
		case equalFold(option, "keep-alive"):
			h.keepAlive = true
		case equalFold(option, "upgrade"):
			h.upgrade = true
		}
	}
}

// parseLength reads digits and nothing else (RFC 9110 8.6), below 10^18.
func parseLength(b []byte) (n int64, ok bool) {
	if len(b) == 0 || len(b) > 18 {
		return 0, false
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// Is reports whether the field has this name, which is given in lower case.
func (f Field) Is(lower string) bool { return equalFold(f.Name, lower) }

// equalFold compares ASCII; lower has no capitals.
func equalFold(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// framing judges Content-Length and Transfer-Encoding together. What two
// readers could frame differently is refused (RFC 9112 6.1, 6.3).
func (h *Head) framing(unframed BodyKind) error {
	switch {
	case h.encodings > 0 && (h.encodings > 1 || !h.chunked):
		return malformed("Transfer-Encoding is not chunked alone")
	case h.encodings > 0 && h.length >= 0:
		return malformed("both Content-Length and Transfer-Encoding")
	case h.encodings > 0 && h.Minor == 0:
		return malformed("Transfer-Encoding in HTTP/1.0")
	case h.encodings > 0:
		h.Body = Body{Kind: ChunkedBody}
	case h.length > 0:
		h.Body = Body{Kind: LengthBody, Length: h.length}
	case h.length < 0:
		h.Body = Body{Kind: unframed}
	}
	if !h.upgrade || h.Minor == 0 {
		h.Upgrade = nil
	}
	if h.Minor == 0 && !h.keepAlive {
		h.Close = true
	}
	return nil
}

func (h *RequestHead) finish() error {
	if h.hosts > 1 || h.hosts == 0 && h.Minor == 1 {
		return malformed("not exactly one Host")
	}
	if bytes.ContainsAny(h.host, "/\\?#@, \t<>\"") {
		return malformed("Host")
	}
	h.Host = h.host
	if err := h.splitTarget(); err != nil {
		return err
	}
	return h.framing(NoBody)
}

// splitTarget tells the four forms apart (RFC 9112 3.2).
func (h *RequestHead) splitTarget() error {
	h.Path = h.Target
	switch {
	case string(h.Method) == "CONNECT":
		if bytes.ContainsAny(h.Target, "/\\?#@,<>\"") {
			return malformed("target of CONNECT")
		}
		h.Host = h.Target
		return nil
	case h.Target[0] == '/':
		return nil
	case string(h.Target) == "*" && string(h.Method) == "OPTIONS":
		return nil
	}
	scheme, rest, ok := bytes.Cut(h.Target, []byte("://"))
	if !ok || !equalFold(scheme, "http") && !equalFold(scheme, "https") {
		return malformed("target")
	}
	slash := bytes.IndexByte(rest, '/')
	if slash < 0 {
		slash = len(rest)
	}
	authority := rest[:slash]
	if len(authority) == 0 || bytes.ContainsAny(authority, "\\?#@,<>\"") {
		return malformed("target")
	}
	h.Host, h.Path = authority, rest[slash:]
	if len(h.Path) == 0 {
		h.Path = []byte("/")
		if string(h.Method) == "OPTIONS" {
			h.Path = []byte("*")
		}
	}
	return nil
}

func (h *ResponseHead) finish(method []byte) error {
	if err := h.framing(CloseBody); err != nil {
		return err
	}
	switch {
	case h.Status == 101, string(method) == "CONNECT" && h.Status/100 == 2:
		h.Body = Body{Kind: TunnelBody}
	case h.Status < 200, h.Status == 204, h.Status == 304, string(method) == "HEAD":
		h.Body = Body{}
	}
	return nil
}
