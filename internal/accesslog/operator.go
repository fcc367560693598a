package accesslog

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// value is what an operator says: a text, or a number. An empty text is not known.
type value struct {
	s      string
	n      int64
	number bool
}

type getter func(e *Entry) value

func text(get func(e *Entry) string) getter {
	return func(e *Entry) value { return value{s: get(e)} }
}

func number(get func(e *Entry) int64) getter {
	return func(e *Entry) value {
		n := get(e)
		return value{n: n, number: n >= 0}
	}
}

func nothing(*Entry) value { return value{} }

// What is said of operators that write nothing.
const (
	noteUnknown = "is not known, and writes nothing"
	noteSecret  = "may hold a secret, and writes nothing" //nolint:gosec // it is about secrets, and none
)

// operatorOf returns what an operator writes, and a note if that is nothing.
func operatorOf(name, arg string) (getter, string) {
	switch name {
	case "REQ":
		return field(arg, func(e *Entry, name string) (string, bool) { return e.request(name) })
	case "RESP":
		return field(arg, func(e *Entry, name string) (string, bool) {
			if e.Response == nil {
				return "", false
			}
			return e.Response(name)
		})
	case "START_TIME":
		return startTime(arg)
	}
	if get, ok := addresses(name); ok {
		return get, ""
	}
	if get, ok := facts()[name]; ok {
		return get, ""
	}
	return nothing, noteUnknown
}

// facts are the operators without an argument.
func facts() map[string]getter {
	return map[string]getter{
		"PROTOCOL":                            text(func(e *Entry) string { return e.Protocol }),
		"RESPONSE_CODE":                       number(func(e *Entry) int64 { return e.Code }),
		"RESPONSE_CODE_DETAILS":               text(func(e *Entry) string { return e.CodeDetails }),
		"CONNECTION_TERMINATION_DETAILS":      text(func(e *Entry) string { return e.Termination }),
		"RESPONSE_FLAGS":                      text(func(e *Entry) string { return e.Flags }),
		"GRPC_STATUS_NUMBER":                  text(func(e *Entry) string { return e.GRPCStatus }),
		"UPSTREAM_TRANSPORT_FAILURE_REASON":   text(func(e *Entry) string { return e.UpstreamTLS }),
		"DOWNSTREAM_TRANSPORT_FAILURE_REASON": text(func(e *Entry) string { return e.ClientTLS }),
		"BYTES_RECEIVED":                      number(func(e *Entry) int64 { return e.Received }),
		"BYTES_SENT":                          number(func(e *Entry) int64 { return e.Sent }),
		"DURATION":                            number(func(e *Entry) int64 { return e.Duration.Milliseconds() }),
		"UPSTREAM_CLUSTER":                    text(func(e *Entry) string { return e.Cluster }),
		"UPSTREAM_CLUSTER_RAW":                text(func(e *Entry) string { return e.Cluster }),
		"REQUESTED_SERVER_NAME":               text(func(e *Entry) string { return e.SNI }),
		"ROUTE_NAME":                          nothing, // there are no routes
		"HOSTNAME":                            text(func(e *Entry) string { return e.Hostname }),
		"DOWNSTREAM_PEER_URI_SAN":             text(func(e *Entry) string { return e.Peer.PeerURI }),
		"DOWNSTREAM_LOCAL_URI_SAN":            text(func(e *Entry) string { return e.Peer.LocalURI }),
		"DOWNSTREAM_PEER_SERIAL":              text(func(e *Entry) string { return e.Peer.PeerSerial }),
		"DOWNSTREAM_TLS_VERSION":              text(func(e *Entry) string { return e.Peer.Version }),
		"DOWNSTREAM_TLS_CIPHER":               text(func(e *Entry) string { return e.Peer.Cipher }),
		"UPSTREAM_PEER_URI_SAN":               text(func(e *Entry) string { return e.PeerUpstream.PeerURI }),
		"UPSTREAM_LOCAL_URI_SAN":              text(func(e *Entry) string { return e.PeerUpstream.LocalURI }),
		"UPSTREAM_PEER_SERIAL":                text(func(e *Entry) string { return e.PeerUpstream.PeerSerial }),
		"UPSTREAM_TLS_VERSION":                text(func(e *Entry) string { return e.PeerUpstream.Version }),
		"UPSTREAM_TLS_CIPHER":                 text(func(e *Entry) string { return e.PeerUpstream.Cipher }),
	}
}

// addresses are the operators for addresses, whole and in parts.
func addresses(name string) (getter, bool) {
	base, want := name, ""
	for _, suffix := range []string{"_WITHOUT_PORT", "_PORT"} {
		if before, ok := strings.CutSuffix(name, suffix); ok {
			base, want = before, suffix
			break
		}
	}
	var of func(e *Entry) netip.AddrPort
	switch base {
	case "UPSTREAM_HOST":
		if want != "" {
			return nil, false
		}
		of = func(e *Entry) netip.AddrPort { return e.UpstreamHost }
	case "UPSTREAM_REMOTE_ADDRESS":
		of = func(e *Entry) netip.AddrPort { return e.UpstreamHost }
	case "UPSTREAM_LOCAL_ADDRESS":
		of = func(e *Entry) netip.AddrPort { return e.Upstream }
	case "DOWNSTREAM_LOCAL_ADDRESS":
		of = func(e *Entry) netip.AddrPort { return e.Local }
	case "DOWNSTREAM_REMOTE_ADDRESS", "DOWNSTREAM_DIRECT_REMOTE_ADDRESS":
		of = func(e *Entry) netip.AddrPort { return e.Remote }
	default:
		return nil, false
	}
	return func(e *Entry) value {
		a := of(e)
		switch {
		case !a.IsValid():
			return value{}
		case want == "_WITHOUT_PORT":
			return value{s: a.Addr().String()}
		case want == "_PORT":
			return value{n: int64(a.Port()), number: true}
		default:
			return value{s: a.String()}
		}
	}, true
}

// request looks a field of the request up, or one of the names that begin with a
// colon.
func (e *Entry) request(name string) (string, bool) {
	switch name {
	case ":method":
		return e.Method, e.Method != ""
	case ":path":
		return publicPath(e.Path), e.Path != ""
	case ":authority", "host":
		return e.Authority, e.Authority != ""
	case ":scheme":
		return "http", e.Method != ""
	}
	if e.Request == nil {
		return "", false
	}
	return e.Request(name)
}

// field is an operator about a field, or another if there is none.
func field(arg string, look func(e *Entry, name string) (string, bool)) (getter, string) {
	name, other, _ := strings.Cut(strings.ToLower(arg), "?")
	if name == "" {
		return nothing, "names no field, and writes nothing"
	}
	if secretField(name) || secretField(other) {
		return nothing, noteSecret
	}
	return func(e *Entry) value {
		s, ok := look(e, name)
		if !ok && other != "" {
			s, _ = look(e, other)
		}
		return value{s: s}
	}, ""
}

// secretField reports whether a field of this name carries what lets others act as
// its sender.
func secretField(name string) bool {
	return slices.Contains([]string{"authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key", "x-auth-token", "x-csrf-token", "x-amz-security-token"}, name) ||
		strings.HasSuffix(name, "-access-token") || strings.HasSuffix(name, "-id-token")
}

// publicPath is a path without the values of parameters that are called like secrets.
func publicPath(path string) string {
	before, query, ok := strings.Cut(path, "?")
	if !ok {
		return path
	}
	var b strings.Builder
	b.WriteString(before)
	sign := byte('?')
	for pair := range strings.SplitSeq(query, "&") {
		b.WriteByte(sign)
		sign = '&'
		if name, _, ok := strings.Cut(pair, "="); ok && secretParameter(name) {
			pair = name + "=***"
		}
		b.WriteString(pair)
	}
	return b.String()
}

func secretParameter(name string) bool {
	name = strings.ToLower(name)
	for _, word := range []string{"token", "secret", "password", "passwd", "apikey", "api_key", "api-key", "signature", "jwt", "credential"} {
		if strings.Contains(name, word) {
			return true
		}
	}
	return slices.Contains([]string{"code", "key", "sig", "pwd", "auth", "session", "sid"}, name)
}

// startTime writes when it began: as RFC 3339 with milliseconds, or as strftime says.
func startTime(format string) (getter, string) {
	if format == "" {
		format = "%Y-%m-%dT%H:%M:%S.%3fZ"
	}
	write, note := strftime(format)
	return func(e *Entry) value {
		if e.Start.IsZero() {
			return value{}
		}
		return value{s: string(write(nil, e.Start.UTC()))}
	}, note
}

// strftime compiles a format of the C library, with %f for parts of a second as Envoy
// has it: %3f are milliseconds, %6f micro-, %9f and %f nanoseconds.
func strftime(format string) (write func(b []byte, t time.Time) []byte, note string) {
	layouts := map[byte]string{
		'Y': "2006", 'm': "01", 'd': "02", 'e': "_2", 'H': "15", 'M': "04", 'S': "05", 'y': "06", 'b': "Jan", 'B': "January", 'a': "Mon", 'A': "Monday",
		'p': "PM", 'I': "03", 'j': "002", 'Z': "MST", 'z': "-0700", 'T': "15:04:05", 'F': "2006-01-02", 'D': "01/02/06", 'R': "15:04",
	}
	var steps []func(b []byte, t time.Time) []byte
	literal := func(s string) {
		steps = append(steps, func(b []byte, _ time.Time) []byte { return append(b, s...) })
	}
	for format != "" {
		before, rest, found := strings.Cut(format, "%")
		literal(before)
		if !found || rest == "" {
			break
		}
		digits := 9
		if rest[0] >= '1' && rest[0] <= '9' && len(rest) > 1 && rest[1] == 'f' {
			digits, rest = int(rest[0]-'0'), rest[1:]
		}
		c := rest[0]
		format = rest[1:]
		switch layout, known := layouts[c]; {
		case known:
			steps = append(steps, func(b []byte, t time.Time) []byte { return t.AppendFormat(b, layout) })
		case c == 'f':
			steps = append(steps, func(b []byte, t time.Time) []byte { return append(b, fmt.Sprintf("%09d", t.Nanosecond())[:digits]...) })
		case c == 's':
			steps = append(steps, func(b []byte, t time.Time) []byte { return strconv.AppendInt(b, t.Unix(), 10) })
		case c == '%':
			literal("%")
		default:
			literal("%" + string(c))
			note = fmt.Sprintf("has %%%c, which is written as it stands", c)
		}
	}
	return func(b []byte, t time.Time) []byte {
		for _, step := range steps {
			b = step(b, t)
		}
		return b
	}, note
}
