// Package accesslog writes one line for each request or connection, in a format that
// users of Envoy have written: text or JSON with command operators (contract 7.10-7.12).
//
//	[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%" %RESPONSE_CODE% %REQ(USER-AGENT):40%
//
// An operator is a name, for some with an argument in parentheses, and perhaps a colon
// and the most characters that are written. REQ, RESP and TRAILER take a field, and
// after a question mark another that stands in for it. %% is a percent sign.
//
// What is not known is "-", in JSON null where the value is the operator alone; in JSON
// numbers are numbers. An operator that this package doesn't know writes the same, and
// is named when the format is parsed.
//
// No secret is written: fields that carry one are left out, and so are parameters of a
// path that are called like one. A value can neither end a line nor a quotation.
package accesslog

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// MaxFormat is how long a format may be, in bytes.
const MaxFormat = 16 << 10

// maxValue is how much of one value is written, in bytes.
const maxValue = 2 << 10

// Entry is what a line is about. Empty and zero values are not known; numbers are not
// known if they are negative.
type Entry struct {
	Start    time.Time
	Duration time.Duration // until the end of the response, or of the connection

	Method, Path, Authority string
	Protocol                string // HTTP/1.1
	// Request and Response look up a field of a head by its name in lower case.
	Request, Response func(name string) (string, bool)

	Code         int64
	CodeDetails  string
	GRPCStatus   string
	Flags        string // Envoy's
	Termination  string // why the connection ended
	UpstreamTLS  string // why TLS with the upstream failed
	ClientTLS    string // why TLS with the client failed
	Received     int64  // bytes of the body, or of the connection, from the client
	Sent         int64  // to it
	UpstreamHost netip.AddrPort
	Upstream     netip.AddrPort // our end of the connection to it
	Local        netip.AddrPort // as the client dialled it
	Remote       netip.AddrPort // of the client
	Cluster      string
	SNI          string

	Peer, PeerUpstream TLS // the client's connection; that to the upstream
	Hostname           string
}

// TLS is what is known of one side's connection.
type TLS struct {
	PeerURI, LocalURI string // spiffe://
	PeerSerial        string
	Version, Cipher   string
}

// Default is the format of Istio's own log (contract 7.11, 7.12).
func Default(asJSON bool) string {
	names := []struct{ key, value string }{
		{"start_time", "START_TIME"},
		{"method", "REQ(:METHOD)"},
		{"path", "REQ(X-ENVOY-ORIGINAL-PATH?:PATH)"},
		{"protocol", "PROTOCOL"},
		{"response_code", "RESPONSE_CODE"},
		{"response_flags", "RESPONSE_FLAGS"},
		{"response_code_details", "RESPONSE_CODE_DETAILS"},
		{"connection_termination_details", "CONNECTION_TERMINATION_DETAILS"},
		{"upstream_transport_failure_reason", "UPSTREAM_TRANSPORT_FAILURE_REASON"},
		{"bytes_received", "BYTES_RECEIVED"},
		{"bytes_sent", "BYTES_SENT"},
		{"duration", "DURATION"},
		{"upstream_service_time", "RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)"},
		{"x_forwarded_for", "REQ(X-FORWARDED-FOR)"},
		{"user_agent", "REQ(USER-AGENT)"},
		{"request_id", "REQ(X-REQUEST-ID)"},
		{"authority", "REQ(:AUTHORITY)"},
		{"upstream_host", "UPSTREAM_HOST"},
		{"upstream_cluster", "UPSTREAM_CLUSTER"},
		{"upstream_local_address", "UPSTREAM_LOCAL_ADDRESS"},
		{"downstream_local_address", "DOWNSTREAM_LOCAL_ADDRESS"},
		{"downstream_remote_address", "DOWNSTREAM_REMOTE_ADDRESS"},
		{"requested_server_name", "REQUESTED_SERVER_NAME"},
		{"route_name", "ROUTE_NAME"},
	}
	object := map[string]string{}
	var text strings.Builder
	quoted := []string{"upstream_transport_failure_reason", "x_forwarded_for", "user_agent", "request_id", "authority", "upstream_host"}
	for i, n := range names {
		value := "%" + n.value + "%"
		object[n.key] = value
		switch {
		case n.key == "start_time":
			value = "[" + value + "]"
		case n.key == "method":
			value = `"` + value
		case n.key == "protocol":
			value += `"`
		case slices.Contains(quoted, n.key):
			value = `"` + value + `"`
		}
		if i > 0 {
			text.WriteByte(' ')
		}
		text.WriteString(value)
	}
	if !asJSON {
		return text.String() + "\n"
	}
	b, err := json.Marshal(object)
	if err != nil {
		panic(err) // can't be: a map of strings
	}
	return string(b)
}

// Format is a format that was parsed. It may be used by many at once.
type Format struct{ parts []part }

// part is a piece of a line: text as it is, or what an operator says.
type part struct {
	literal string
	get     getter // nil for a literal
	most    int    // characters; 0 is as many as there are
	as      encoding
}

type encoding int

const (
	plain     encoding = iota // in a line of text
	inString                  // in a string of JSON
	jsonValue                 // a value of JSON
)

// Parse reads a format. asJSON says that it is a JSON object, whose texts are formats.
// The notes name what in it writes nothing.
func Parse(format string, asJSON bool) (f *Format, notes []string, err error) {
	if len(format) > MaxFormat {
		return nil, nil, fmt.Errorf("the format is longer than %d bytes", MaxFormat)
	}
	p := &parser{f: &Format{}}
	if asJSON {
		err = p.object(format)
	} else {
		err = p.text(format, plain)
	}
	if err != nil {
		return nil, nil, err
	}
	if !strings.HasSuffix(p.f.last(), "\n") {
		p.literal("\n")
	}
	return p.f, slices.Compact(slices.Sorted(slices.Values(p.notes))), nil
}

func (f *Format) last() string {
	if n := len(f.parts); n > 0 {
		return f.parts[n-1].literal
	}
	return ""
}

type parser struct {
	f     *Format
	notes []string
}

func (p *parser) literal(s string) {
	if n := len(p.f.parts); n > 0 && p.f.parts[n-1].get == nil {
		p.f.parts[n-1].literal += s
		return
	}
	p.f.parts = append(p.f.parts, part{literal: s})
}

func (p *parser) object(format string) error {
	d := json.NewDecoder(strings.NewReader(format))
	d.UseNumber()
	var v map[string]any
	if err := d.Decode(&v); err != nil {
		return errors.New("not an object of JSON")
	}
	return p.value(v, 0)
}

// value writes a value of the format; objects have their keys in order.
func (p *parser) value(v any, depth int) error {
	const deepest = 8
	if depth > deepest {
		return fmt.Errorf("objects stand in objects more than %d deep", deepest)
	}
	switch v := v.(type) {
	case map[string]any:
		p.literal("{")
		for i, key := range slices.Sorted(maps.Keys(v)) {
			if i > 0 {
				p.literal(",")
			}
			p.literal(string(appendJSON(nil, key)) + ":")
			if err := p.value(v[key], depth+1); err != nil {
				return fmt.Errorf("%s: %w", key, err)
			}
		}
		p.literal("}")
		return nil
	case []any:
		p.literal("[")
		for i, item := range v {
			if i > 0 {
				p.literal(",")
			}
			if err := p.value(item, depth+1); err != nil {
				return err
			}
		}
		p.literal("]")
		return nil
	case string:
		return p.leaf(v)
	default:
		b, err := json.Marshal(v)
		p.literal(string(b))
		return err
	}
}

// leaf writes a text of a JSON format: one operator alone keeps its type.
func (p *parser) leaf(s string) error {
	if strings.HasPrefix(s, "%") && s != "%%" {
		if name, arg, most, rest, err := cutOperator(s[1:]); err == nil && rest == "" {
			p.operator(name, arg, most, jsonValue)
			return nil
		}
	}
	p.literal(`"`)
	if err := p.text(s, inString); err != nil {
		return err
	}
	p.literal(`"`)
	return nil
}

func (p *parser) text(s string, as encoding) error {
	write := func(s string) {
		if as == inString {
			s = string(appendJSONInner(nil, s))
		}
		p.literal(s)
	}
	for s != "" {
		before, rest, found := strings.Cut(s, "%")
		write(before)
		if !found {
			return nil
		}
		if strings.HasPrefix(rest, "%") {
			write("%")
			s = rest[1:]
			continue
		}
		name, arg, most, after, err := cutOperator(rest)
		if err != nil {
			return err
		}
		p.operator(name, arg, most, as)
		s = after
	}
	return nil
}

// cutOperator takes what follows a percent sign apart: NAME, (ARGUMENT), :LENGTH, %.
func cutOperator(s string) (name, arg string, most int, rest string, err error) {
	end := strings.IndexFunc(s, func(r rune) bool { return r != '_' && (r < 'A' || r > 'Z') && (r < '0' || r > '9') })
	if end <= 0 {
		return "", "", 0, "", fmt.Errorf("%%%.40s: write an operator such as %%START_TIME%%, or %%%% for a percent sign", s)
	}
	name, rest = s[:end], s[end:]
	if after, ok := strings.CutPrefix(rest, "("); ok {
		if arg, rest, ok = strings.Cut(after, ")"); !ok {
			return "", "", 0, "", fmt.Errorf("%%%s: there is no closing parenthesis", name)
		}
	}
	if after, ok := strings.CutPrefix(rest, ":"); ok {
		digits, tail, _ := strings.Cut(after, "%")
		if most, err = strconv.Atoi(digits); err != nil || most <= 0 || most > MaxFormat {
			return "", "", 0, "", fmt.Errorf("%%%s: %.20q is no length", name, digits)
		}
		return name, arg, most, tail, nil
	}
	rest, ok := strings.CutPrefix(rest, "%")
	if !ok {
		return "", "", 0, "", fmt.Errorf("%%%s: there is no closing percent sign", name)
	}
	return name, arg, most, rest, nil
}

func (p *parser) operator(name, arg string, most int, as encoding) {
	get, note := operatorOf(name, arg)
	if note != "" {
		shown := "%" + name + "%"
		if arg != "" {
			shown = "%" + name + "(" + arg + ")%"
		}
		p.notes = append(p.notes, shown+" "+note)
	}
	p.f.parts = append(p.f.parts, part{get: get, most: most, as: as})
}

// Append appends the line for an entry.
func (f *Format) Append(b []byte, e *Entry) []byte {
	for i := range f.parts {
		q := &f.parts[i]
		if q.get == nil {
			b = append(b, q.literal...)
			continue
		}
		b = q.append(b, q.get(e))
	}
	return b
}

func (q *part) append(b []byte, v value) []byte {
	if v.number && q.as == jsonValue {
		return strconv.AppendInt(b, v.n, 10)
	}
	s := v.s
	if v.number {
		s = strconv.FormatInt(v.n, 10)
	}
	if s == "" {
		if q.as == jsonValue {
			return append(b, "null"...)
		}
		return append(b, '-')
	}
	s = cut(s, cmp.Or(q.most, maxValue))
	switch q.as {
	case inString:
		return appendJSONInner(b, s)
	case jsonValue:
		return appendJSON(b, s)
	default:
		return appendText(b, s)
	}
}

// cut shortens a text to so many bytes, and leaves no half of a character.
func cut(s string, most int) string {
	most = min(most, maxValue)
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "")
}

// appendText escapes what would end the line, or a quotation in it.
func appendText(b []byte, s string) []byte {
	for _, r := range []byte(s) {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', r)
		case r < ' ' || r == 0x7f:
			b = append(b, fmt.Sprintf(`\x%02x`, r)...)
		default:
			b = append(b, r)
		}
	}
	return b
}

func appendJSON(b []byte, s string) []byte {
	var buf bytes.Buffer
	e := json.NewEncoder(&buf)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		return append(b, `""`...) // can't be: a string
	}
	return append(b, bytes.TrimSuffix(buf.Bytes(), []byte{'\n'})...)
}

// appendJSONInner is appendJSON without the quotation marks.
func appendJSONInner(b []byte, s string) []byte {
	quoted := appendJSON(nil, s)
	return append(b, quoted[1:len(quoted)-1]...)
}
