package policy

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// text is one value to compare with (contract 6.17). With fold, s is in lower
// case and what it is compared with may have capitals.
type text struct {
	kind  textKind
	fold  bool
	s     string
	parts []string // of a glob or template
}

type textKind int

const (
	exact    textKind = iota
	prefix            // "x*"
	suffix            // "*x"
	present           // "*": there, and for all but headers not empty
	nonEmpty          // at least one byte
	glob              // parts, with anything between them (contract 6.21, 6.23)
	template          // parts of a path (contract 6.24)
)

// parseText reads a value; a star elsewhere than at one end is literal.
func parseText(v string) text {
	switch {
	case v == "*":
		return text{kind: present}
	case strings.HasPrefix(v, "*"):
		return text{kind: suffix, s: v[1:]}
	case strings.HasSuffix(v, "*"):
		return text{kind: prefix, s: v[:len(v)-1]}
	default:
		return text{kind: exact, s: v}
	}
}

// parseGlob reads a value in which every star stands for any characters.
func parseGlob(v string) text {
	if !strings.Contains(v, "*") {
		return text{kind: exact, s: v}
	}
	return text{kind: glob, parts: strings.Split(v, "*")}
}

// Operators of a path template.
const (
	oneSegment  = "{*}"
	anySegments = "{**}"
)

// parsePath reads a path, or a template (contract 6.24).
func parsePath(v string) text {
	if strings.Contains(v, oneSegment) || strings.Contains(v, anySegments) {
		return text{kind: template, parts: strings.Split(v, "/")}
	}
	return parseText(v)
}

// checkPath allows in a template only whole segments as operators, nothing but
// literals after `{**}`, and literals that a path can have; braces elsewhere
// nowhere (contract 6.24).
func checkPath(v string) error {
	if v == "" {
		return errors.New("is empty")
	}
	isTemplate := strings.Contains(v, oneSegment) || strings.Contains(v, anySegments)
	last := false
	for segment := range strings.SplitSeq(strings.Trim(v, "/"), "/") {
		switch {
		case (segment == oneSegment || segment == anySegments) && last:
			return fmt.Errorf("%q: {**} must be the last operator", v)
		case segment == oneSegment:
		case segment == anySegments:
			last = true
		case strings.ContainsAny(segment, "{}"):
			return fmt.Errorf("%q: braces are only for the whole segments {*} and {**}", v)
		case isTemplate && !pathLiteral(segment):
			return fmt.Errorf("%q: %q is not a literal that a path can have", v, segment)
		}
	}
	if isTemplate && v[0] != '/' {
		return fmt.Errorf("%q: a template begins with a slash", v)
	}
	return nil
}

// pathLiteral reports whether s has only characters of a path segment (RFC 3986
// pchar), of which the star is one only outside templates.
func pathLiteral(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := 'a' <= c|0x20 && c|0x20 <= 'z'
		if !letter && strings.IndexByte("0123456789-._~%!$&'()+,;:@=", c) < 0 {
			return false
		}
	}
	return true
}

// matchText compares; it doesn't allocate.
func matchText[T string | []byte](t *text, v T) bool {
	switch t.kind {
	case exact:
		return len(v) == len(t.s) && startsWith(v, 0, t)
	case prefix:
		return startsWith(v, 0, t)
	case suffix:
		return startsWith(v, len(v)-len(t.s), t)
	case present:
		return true
	case nonEmpty:
		return len(v) > 0
	case glob:
		return matchGlob(t.parts, v)
	case template:
		return matchTemplate(t.parts, v)
	}
	return false
}

// startsWith reports whether t.s stands in v at this place.
func startsWith[T string | []byte](v T, at int, t *text) bool {
	if at < 0 || len(v)-at < len(t.s) {
		return false
	}
	for i := range len(t.s) {
		c := v[at+i]
		if t.fold && 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != t.s[i] {
			return false
		}
	}
	return true
}

// matchGlob finds the parts one after the other, the first at the beginning and
// the last at the end.
func matchGlob[T string | []byte](parts []string, v T) bool {
	at, last := 0, len(parts)-1
	for i, part := range parts {
		p := text{s: part}
		switch i {
		case 0:
			if !startsWith(v, 0, &p) {
				return false
			}
			at = len(part)
		case last:
			return len(v)-len(part) >= at && startsWith(v, len(v)-len(part), &p)
		default:
			for !startsWith(v, at, &p) {
				if at++; at > len(v) {
					return false
				}
			}
			at += len(part)
		}
	}
	return false // a glob has at least two parts
}

// matchTemplate compares a path segment by segment. `{*}` is one segment that
// isn't empty, `{**}` any number of them.
func matchTemplate[T string | []byte](parts []string, v T) bool {
	at := 0
	for i, part := range parts {
		if i > 0 {
			if at >= len(v) || v[at] != '/' {
				return false
			}
			at++
		}
		switch part {
		case anySegments:
			return matchTail(parts[i+1:], v, at)
		case oneSegment:
			from := at
			for at < len(v) && v[at] != '/' {
				at++
			}
			if at == from {
				return false
			}
		default:
			p := text{s: part}
			if !startsWith(v, at, &p) {
				return false
			}
			at += len(part)
		}
	}
	return at == len(v)
}

// matchTail reports whether v ends in these segments, at or after a place.
func matchTail[T string | []byte](parts []string, v T, from int) bool {
	end := len(v)
	for _, part := range slices.Backward(parts) {
		p := text{s: part}
		end -= len(part)
		if !startsWith(v, end, &p) {
			return false
		}
		if end--; end < from || v[end] != '/' {
			return false
		}
	}
	return true
}

// holds reports whether the attribute has one of the clause's values.
func (c *clause) holds(t *Attempt) bool {
	if c.on.HTTPOnly() {
		return t.Request != nil && c.inRequest(t.Request)
	}
	switch c.on {
	case SourcePrincipal:
		return len(t.Peer.text) > 0 && anyText(c.text, t.Peer.text)
	case SourceNamespace:
		return len(t.Peer.text) > 0 && anyText(c.text, t.Peer.id.Namespace())
	case SourceTrustDomain:
		return len(t.Peer.text) > 0 && anyText(c.text, t.Peer.id.TrustDomain())
	case SourceServiceAccount:
		for _, a := range c.accounts {
			if len(t.Peer.text) > 0 && a.namespace == t.Peer.id.Namespace() && a.name == t.Peer.id.ServiceAccount() {
				return true
			}
		}
	case SourceIP:
		return anyPrefix(c.prefixes, t.Source)
	case RemoteIP:
		return anyPrefix(c.prefixes, remote(t))
	case DestinationIP:
		return anyPrefix(c.prefixes, t.Destination.Addr())
	case DestinationPort:
		for _, p := range c.ports {
			if p == t.Destination.Port() {
				return true
			}
		}
	case ConnectionSNI:
		return len(t.SNI) > 0 && anyText(c.text, t.SNI)
	default:
	}
	return false
}

func (c *clause) inRequest(r *Request) bool {
	switch c.on {
	case RequestHost:
		return anyText(c.text, r.Host)
	case RequestMethod:
		return anyText(c.text, r.Method)
	case RequestPath:
		path := r.Path
		if end := bytes.IndexAny(path, "?#"); end >= 0 {
			path = path[:end]
		}
		return anyText(c.text, path)
	case RequestHeader:
		v, ok := r.field(c.key[0])
		return ok && anyText(c.text, v)
	default:
		return r.Token != nil && c.inToken(r.Token)
	}
}

// field looks up a header field. What HTTP/2 has as pseudo-headers can be asked
// for under those names.
func (r *Request) field(name string) ([]byte, bool) {
	switch name {
	case "host", ":authority":
		return r.Host, len(r.Host) > 0
	case ":method":
		return r.Method, true
	case ":path":
		return r.Path, true
	}
	if r.Header == nil {
		return nil, false
	}
	return r.Header.Field(name)
}

func (c *clause) inToken(k *Token) bool {
	switch c.on {
	case RequestPrincipal:
		for i := range c.tokens {
			if matchText(&c.tokens[i].issuer, k.Issuer) && matchText(&c.tokens[i].subject, k.Subject) {
				return true
			}
		}
	case RequestAudiences:
		for _, v := range k.Audiences {
			if anyText(c.text, v) {
				return true
			}
		}
	case RequestPresenter:
		return k.Presenter != "" && anyText(c.text, k.Presenter)
	case RequestClaim:
		return c.inClaim(k.Claims)
	default:
	}
	return false
}

// inClaim follows the path through objects to a text or a list of texts.
func (c *clause) inClaim(claims map[string]any) bool {
	var v any = claims
	for _, name := range c.key {
		object, ok := v.(map[string]any)
		if !ok {
			return false
		}
		v = object[name]
	}
	switch v := v.(type) {
	case string:
		return anyText(c.text, v)
	case []any:
		for _, x := range v {
			if s, ok := x.(string); ok && anyText(c.text, s) {
				return true
			}
		}
	}
	return false
}

func anyText[T string | []byte](values []text, v T) bool {
	for i := range values {
		if matchText(&values[i], v) {
			return true
		}
	}
	return false
}

func anyPrefix(prefixes []netip.Prefix, a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// remote is the address that the last proxy before this one saw, if it says so
// in a way that can be read, else that of the TCP peer (contract 6.28).
func remote(t *Attempt) netip.Addr {
	if t.Request == nil {
		return t.Source
	}
	v, ok := t.Request.field("x-forwarded-for")
	if !ok {
		return t.Source
	}
	v = bytes.Trim(v[bytes.LastIndexByte(v, ',')+1:], " \t")
	if a, ok := parseIPv4(v); ok {
		return a
	}
	if a, err := netip.ParseAddr(string(v)); err == nil {
		return a
	}
	return t.Source
}

// parseIPv4 is netip.ParseAddr for the usual case, without allocation.
func parseIPv4(b []byte) (netip.Addr, bool) {
	var a [4]byte
	for i := range a {
		n, digits := 0, 0
		for ; digits < len(b) && '0' <= b[digits] && b[digits] <= '9'; digits++ {
			if digits > 0 && n == 0 || digits == 3 {
				return netip.Addr{}, false
			}
			n = n*10 + int(b[digits]-'0')
		}
		if digits == 0 || n > 255 {
			return netip.Addr{}, false
		}
		a[i], b = byte(n), b[digits:]
		if i == len(a)-1 {
			break
		}
		if len(b) == 0 || b[0] != '.' {
			return netip.Addr{}, false
		}
		b = b[1:]
	}
	return netip.AddrFrom4(a), len(b) == 0
}
