package h2

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/http2/hpack"
)

// errMalformed says that a head breaks RFC 9113 8.2 or 8.3.
var errMalformed = errors.New("malformed head")

func malformed(what string) error { return fmt.Errorf("%w: %s", errMalformed, what) }

// decoder takes heads apart. One that is too large is read to its end, so that the
// tables stay right, but not kept.
type decoder struct {
	hpack    *hpack.Decoder
	fields   []Field // of the last head
	size     int
	tooLarge bool
}

func (d *decoder) start() {
	d.hpack = hpack.NewDecoder(4096, func(f Field) {
		d.size += int(f.Size())
		if len(d.fields) == maxFields+5 || d.size > maxList { // 5 pseudo-fields
			d.tooLarge = true
			d.hpack.SetEmitEnabled(false)
			return
		}
		d.fields = append(d.fields, f)
	})
}

// decode reads a head into d.fields. Errors are of the connection.
func (d *decoder) decode(block []byte) error {
	clear(d.fields) // let go of their strings
	d.fields, d.size, d.tooLarge = d.fields[:0], 0, false
	d.hpack.SetEmitEnabled(true)
	if _, err := d.hpack.Write(block); err != nil {
		return broken(compression, "a head can't be decoded")
	}
	if err := d.hpack.Close(); err != nil {
		return broken(compression, "a head is not complete")
	}
	return nil
}

// encoder puts heads together, into block.
type encoder struct {
	hpack *hpack.Encoder
	block []byte
}

func (e *encoder) start() { e.hpack = hpack.NewEncoder(e) }

// Write implements io.Writer for the hpack package.
func (e *encoder) Write(b []byte) (int, error) {
	e.block = append(e.block, b...)
	return len(b), nil
}

// begin begins a head with a pseudo-field.
func (e *encoder) begin(name, value string) {
	e.block = e.block[:0]
	e.field(Field{Name: name, Value: value})
}

func (e *encoder) field(f Field) {
	_ = e.hpack.WriteField(f) // Write doesn't fail
}

func (e *encoder) fields(fields []Field) {
	for i := range fields {
		if passing(fields[i].Name) && !fields[i].Sensitive {
			e.once(&fields[i])
			continue
		}
		e.field(fields[i])
	}
}

// passing reports whether values of a field are hardly ever the same again: in the
// table they would only drive others out.
func passing(name string) bool {
	switch name {
	case "x-request-id", "x-envoy-upstream-service-time", "date", "content-length", "grpc-timeout", "traceparent", "x-b3-spanid", "x-b3-traceid":
		return true
	}
	return false
}

// once appends a field that is not to be kept in the table (RFC 7541 6.2.2). It is
// never the first of a head.
func (e *encoder) once(f *Field) {
	b := append(e.block, 0)
	b = appendString(b, f.Name)
	e.block = appendString(b, f.Value)
}

func appendString(b []byte, s string) []byte {
	const huffman = 0x80
	if n := hpack.HuffmanEncodeLength(s); n < uint64(len(s)) {
		return hpack.AppendHuffmanString(appendInteger(b, huffman, n), s)
	}
	return append(appendInteger(b, 0, uint64(len(s))), s...)
}

// appendInteger appends a number with a prefix of 7 bits (RFC 7541 5.1).
func appendInteger(b []byte, first byte, n uint64) []byte {
	const prefix = 1<<7 - 1
	if n < prefix {
		return append(b, first|byte(n))
	}
	b = append(b, first|prefix)
	for n -= prefix; n >= 0x80; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(b, byte(n))
}

// unknownLength is that of a body whose length isn't said.
const unknownLength = -1

// readRequest reads a head into req. connect says that the application takes
// extended CONNECT. The errors are errMalformed.
func readRequest(req *Request, fields []Field, connect bool) (length int64, err error) {
	pseudo := pseudos{}
	at := 0
	for ; at < len(fields) && strings.HasPrefix(fields[at].Name, ":"); at++ {
		if err := pseudo.set(req, &fields[at]); err != nil {
			return 0, err
		}
	}
	length = unknownLength
	hosts := 0
	for _, f := range fields[at:] {
		if err := checkField(&f); err != nil {
			return 0, err
		}
		switch f.Name {
		case "host":
			hosts++
			if hosts > 1 || pseudo.authority && !strings.EqualFold(f.Value, req.Authority) {
				return 0, malformed("Host")
			}
			req.Authority = f.Value
			continue // :authority says it
		case "te":
			if f.Value != "trailers" {
				return 0, malformed("TE")
			}
		case "content-length":
			n, ok := parseLength(f.Value)
			if !ok || length >= 0 && length != n {
				return 0, malformed("Content-Length")
			}
			if length >= 0 {
				continue
			}
			length = n
		}
		req.Fields = append(req.Fields, f)
	}
	return length, pseudo.check(req, connect)
}

// pseudos is which pseudo-fields of a request there were.
type pseudos struct{ method, scheme, authority, path, protocol bool }

func (p *pseudos) set(req *Request, f *Field) error {
	var seen *bool
	var to *string
	switch f.Name {
	case ":method":
		seen, to = &p.method, &req.Method
	case ":scheme":
		seen, to = &p.scheme, &req.Scheme
	case ":authority":
		seen, to = &p.authority, &req.Authority
	case ":path":
		seen, to = &p.path, &req.Path
	case ":protocol":
		seen, to = &p.protocol, &req.Protocol
	default:
		return malformed("unknown pseudo-field")
	}
	if *seen || !cleanValue(f.Value) {
		return malformed(f.Name)
	}
	*seen, *to = true, f.Value
	return nil
}

const maxMethod = 64

// check looks at the pseudo-fields together (RFC 9113 8.3.1, 8.5, RFC 8441 4).
func (p *pseudos) check(req *Request, connect bool) error {
	if !p.method || len(req.Method) > maxMethod || !isToken(req.Method) {
		return malformed(":method")
	}
	if p.authority && req.Authority == "" || strings.ContainsAny(req.Authority, "/\\?#@, \t<>\"") {
		return malformed(":authority")
	}
	isConnect := req.Method == http.MethodConnect
	if p.protocol && (!isConnect || !connect || !isToken(req.Protocol)) {
		return malformed(":protocol")
	}
	if isConnect && !p.protocol {
		if p.scheme || p.path || !p.authority {
			return malformed("CONNECT")
		}
		return nil
	}
	if !p.scheme || !isScheme(req.Scheme) {
		return malformed(":scheme")
	}
	if !p.path || !isPath(req.Path) || req.Path == "*" && req.Method != http.MethodOptions {
		return malformed(":path")
	}
	return nil
}

func isScheme(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := 'a' <= c|0x20 && c|0x20 <= 'z'
		if !letter && (i == 0 || c != '+' && c != '-' && c != '.' && (c < '0' || c > '9')) {
			return false
		}
	}
	return s != ""
}

func isPath(s string) bool {
	if s != "*" && !strings.HasPrefix(s, "/") {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == 0x7f {
			return false
		}
	}
	return true
}

// checkField checks name and value (RFC 9113 8.2.1, 8.2.2).
func checkField(f *Field) error {
	if !isName(f.Name) {
		return malformed("field name")
	}
	if !cleanValue(f.Value) {
		return malformed("field value")
	}
	switch f.Name {
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade":
		return malformed(f.Name)
	}
	return nil
}

// cleanValue reports whether a value has neither control characters but tabs nor
// white space around it.
func cleanValue(s string) bool {
	if s == "" {
		return true
	}
	if blank(s[0]) || blank(s[len(s)-1]) {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

func blank(c byte) bool { return c == ' ' || c == '\t' }

// Bits of the bytes that may stand in a token (RFC 9110 5.6.2).
const (
	tokenLow  = 0x03ff6cfa00000000
	tokenHigh = 0x57ffffffc7fffffe
)

func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c >= 128 || c < 64 && tokenLow>>c&1 == 0 || c >= 64 && tokenHigh>>(c-64)&1 == 0 {
			return false
		}
	}
	return s != ""
}

// isName reports whether s is a token in lower case.
func isName(s string) bool {
	for i := range len(s) {
		if 'A' <= s[i] && s[i] <= 'Z' {
			return false
		}
	}
	return isToken(s)
}

// parseLength reads digits and nothing else (RFC 9110 8.6), below 10^18.
func parseLength(s string) (n int64, ok bool) {
	if s == "" || len(s) > 18 {
		return 0, false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = n*10 + int64(s[i]-'0')
	}
	return n, true
}

// readResponse reads a head into res, or trailers if there is no :status.
func readResponse(res *Response, fields []Field) (trailers bool, err error) {
	res.Status = 0
	for i := range fields {
		f := &fields[i]
		if f.Name == ":status" {
			if i > 0 || len(f.Value) != 3 {
				return false, malformed(":status")
			}
			n, err := strconv.ParseUint(f.Value, 10, 16)
			if err != nil || n < 100 || n > 599 || n == 101 {
				return false, malformed(":status")
			}
			res.Status = int(n)
			continue
		}
		if err := checkField(f); err != nil {
			return false, err
		}
	}
	if res.Status == 0 {
		res.Fields = fields
		return true, nil
	}
	res.Fields = fields[1:]
	return false, nil
}

// checkTrailers checks the trailers of a request.
func checkTrailers(fields []Field) error {
	for i := range fields {
		if err := checkField(&fields[i]); err != nil {
			return err // a pseudo-field's name is none
		}
	}
	return nil
}

func isGRPC(contentType string) bool {
	const grpc = "application/grpc"
	rest, ok := strings.CutPrefix(contentType, grpc)
	return ok && (rest == "" || rest[0] == '+' || rest[0] == ';')
}

// grpcCode is the status of gRPC that a call without an answer of its server has.
func grpcCode(status int) string {
	switch status {
	case 400, 431:
		return "13" // INTERNAL
	case 401:
		return "16" // UNAUTHENTICATED
	case 403:
		return "7" // PERMISSION_DENIED
	case 404:
		return "12" // UNIMPLEMENTED
	case 429, 502, 503, 504:
		return "14" // UNAVAILABLE
	default:
		return "2" // UNKNOWN
	}
}

// grpcMessage encodes a message as its field wants it: printable ASCII but %.
func grpcMessage(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c >= ' ' && c <= '~' && c != '%' {
			b.WriteByte(c)
			continue
		}
		fmt.Fprintf(&b, "%%%02X", s[i])
	}
	return b.String()
}

func hasField(fields []Field, name string) bool {
	return slices.ContainsFunc(fields, func(f Field) bool { return f.Name == name })
}
