package wire

import (
	"bytes"
	"strings"
)

// Detection is what DetectHTTP makes of the first bytes of a stream.
type Detection int

// The detections. HTTP10 is told apart since it is carried as bytes on ports
// that aren't declared as HTTP (contract 2.5).
const (
	NotHTTP Detection = iota
	NeedMore
	HTTP1  // a request line of HTTP/1.1
	HTTP10 // a request line of HTTP/1.0
	H2C    // the connection preface of HTTP/2
)

func (d Detection) String() string {
	return [...]string{"not HTTP", "need more", "HTTP/1.1", "HTTP/1.0", "h2c"}[d]
}

const (
	// maxDetect bounds how many bytes are looked at. A request line that is still
	// plausible then is a long one.
	maxDetect = 8 << 10
	preface   = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
)

// BeginsHTTP2 reports whether b may be the beginning of the preface of HTTP/2.
func BeginsHTTP2(b []byte) bool {
	n := min(len(b), len(preface))
	return string(b[:n]) == preface[:n]
}

// DetectHTTP says what the first bytes of a plaintext stream are (contract
// 2.5). Only registered methods count, so that a client of another protocol
// which says a word and waits is known at once and not waited for.
func DetectHTTP(b []byte) Detection {
	if len(b) == 0 {
		return NeedMore
	}
	if BeginsHTTP2(b) {
		if len(b) < len(preface) {
			return NeedMore
		}
		return H2C
	}
	method, rest, complete := bytes.Cut(b, []byte{' '})
	if !isMethod(method, complete) {
		return NotHTTP
	}
	if !complete {
		return NeedMore
	}
	return detectTarget(rest)
}

// detectTarget looks at what follows the method.
func detectTarget(b []byte) Detection {
	target, rest, complete := bytes.Cut(b[:min(len(b), maxDetect)], []byte{' '})
	if complete && len(target) == 0 {
		return NotHTTP
	}
	for _, c := range target {
		if c <= ' ' || c == 0x7f {
			return NotHTTP
		}
	}
	switch {
	case !complete && len(b) >= maxDetect:
		return HTTP1
	case !complete:
		return NeedMore
	}
	const version = "HTTP/1."
	if n := min(len(rest), len(version)); string(rest[:n]) != version[:n] {
		return NotHTTP
	}
	if len(rest) <= len(version) {
		return NeedMore
	}
	minor, end := rest[len(version)], rest[len(version)+1:]
	switch {
	case minor != '0' && minor != '1':
		return NotHTTP
	case len(end) == 0:
		return NeedMore
	case end[0] != '\r' && end[0] != '\n':
		return NotHTTP
	case minor == '0':
		return HTTP10
	default:
		return HTTP1
	}
}

// methods are those of the IANA registry and of RFCs 3253, 4791, 5842 and UPnP
// that HTTP/1 parsers know.
const methods = " GET HEAD POST PUT DELETE CONNECT OPTIONS TRACE PATCH" +
	" ACL BASELINE-CONTROL BIND CHECKIN CHECKOUT COPY LABEL LINK LOCK MERGE MKACTIVITY MKCALENDAR MKCOL MKREDIRECTREF MKWORKSPACE MOVE" +
	" ORDERPATCH PROPFIND PROPPATCH PURGE QUERY REBIND REPORT SEARCH UNBIND UNCHECKOUT UNLINK UNLOCK UPDATE UPDATEREDIRECTREF" +
	" VERSION-CONTROL M-SEARCH NOTIFY SUBSCRIBE UNSUBSCRIBE SOURCE "

// isMethod reports whether word is a method, or while it isn't complete, the
// beginning of one.
func isMethod(word []byte, complete bool) bool {
	const longest = 20
	if len(word) == 0 || len(word) > longest || bytes.IndexByte(word, ' ') >= 0 {
		return false
	}
	var buf [longest + 2]byte
	pattern := append(append(append(buf[:0], ' '), word...), ' ')
	if !complete {
		pattern = pattern[:len(pattern)-1]
	}
	return strings.Contains(methods, string(pattern))
}
