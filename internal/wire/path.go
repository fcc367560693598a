package wire

import "bytes"

// maxPathPasses bounds how often a path is decoded: what decodes to another escape
// again and again is no path but an attempt to get past somebody.
const maxPathPasses = 4

// AppendNormalPath appends a request's path as it is judged and passed on, so
// that policy and application understand it alike (contract 2.53, 2.54): without
// a fragment, with `\` as `/`, with the escapes of characters that need none
// undone (RFC 3986 6.2.2.2), and without dot segments (RFC 3986 5.2.4). Repeated
// slashes and escaped slashes stay. The query stays as it is. It wraps
// ErrMalformed for an escaped NUL and for escapes of escapes without end.
func AppendNormalPath(b, path []byte) ([]byte, error) {
	if end := bytes.IndexByte(path, '#'); end >= 0 {
		path = path[:end]
	}
	path, query := path, []byte(nil)
	if q := bytes.IndexByte(path, '?'); q >= 0 {
		path, query = path[:q], path[q:]
	}
	start := len(b)
	b = append(b, path...)
	for pass := 0; ; pass++ {
		p := b[start:]
		n, ok := decodeOnce(p)
		if !ok || pass == maxPathPasses {
			return nil, malformed("path")
		}
		b = b[:start+n]
		if n == len(p) {
			break
		}
	}
	b = b[:start+removeDots(b[start:])]
	return append(b, query...), nil
}

// IsNormalPath reports whether AppendNormalPath would change nothing, of most
// paths; of some it says so though nothing would change.
func IsNormalPath(path []byte) bool {
	for i, c := range path {
		switch c {
		case '?':
			return bytes.IndexByte(path[i:], '#') < 0
		case '\\', '%', '#':
			return false
		case '.':
			if i > 0 && path[i-1] == '/' {
				return false
			}
		}
	}
	return true
}

// decodeOnce undoes escapes that aren't needed, in place, and returns the new
// length.
func decodeOnce(p []byte) (n int, ok bool) {
	for i := 0; i < len(p); i++ {
		c := p[i]
		if c == '\\' {
			c = '/'
		}
		if c == '%' && i+2 < len(p) {
			high, low := unhex(p[i+1]), unhex(p[i+2])
			if v := byte(high<<4 | low); high >= 0 && low >= 0 {
				if v == 0 {
					return 0, false
				}
				if unreserved(v) {
					c = v
					i += 2
				}
			}
		}
		p[n] = c
		n++
	}
	return n, true
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		return int(c|0x20-'a') + 10
	default:
		return -1
	}
}

// unreserved is RFC 3986 2.3.
func unreserved(c byte) bool {
	switch {
	case 'a' <= c|0x20 && c|0x20 <= 'z', '0' <= c && c <= '9':
		return true
	default:
		return c == '-' || c == '.' || c == '_' || c == '~'
	}
}

// removeDots removes dot segments of a path that begins with a slash, in place,
// and returns the new length.
func removeDots(p []byte) int {
	n := 0
	for at := 0; at < len(p); {
		end := at + 1 // of the segment that begins with the slash at `at`
		for end < len(p) && p[end] != '/' {
			end++
		}
		segment := string(p[at+1 : end])
		switch {
		case segment != "." && segment != "..":
			n += copy(p[n:], p[at:end])
		default:
			if segment == ".." && n > 0 {
				n = bytes.LastIndexByte(p[:n], '/')
			}
			if end == len(p) { // the last segment leaves its slash
				p[n] = '/'
				n++
			}
		}
		at = end
	}
	return n
}
