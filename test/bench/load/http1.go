package load

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
)

// maxBody is the largest answer.
const maxBody = 1 << 20

// body is what answers are made of: bytes that don't compress to nothing.
//
//nolint:gochecknoglobals // constant
var body = func() []byte {
	b := make([]byte, maxBody)
	x := uint32(1)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}()

// maxHead bounds what is kept of a head that is not complete.
const maxHead = 16 << 10

// h1Request asks for size bytes.
func h1Request(size int) []byte {
	return fmt.Appendf(nil, "GET /%d HTTP/1.1\r\nHost: server\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n", size)
}

// h1Answer is the answer to that.
func h1Answer(size int) []byte {
	b := fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nServer: bench\r\nContent-Type: application/octet-stream\r\nCache-Control: no-store\r\nContent-Length: %d\r\n\r\n", size)
	return append(b, body[:size]...)
}

// h1Server is one connection's state: the part of a head that has come.
type h1Server struct{ partial []byte }

// feed takes what came and returns the sizes that were asked for.
func (h *h1Server) feed(b []byte, ask func(size int)) error {
	if len(h.partial) > 0 {
		h.partial = append(h.partial, b...)
		b = h.partial
	}
	for len(b) > 0 {
		end := bytes.Index(b, []byte("\r\n\r\n"))
		if end < 0 {
			if len(b) > maxHead {
				return errors.New("a head without an end")
			}
			h.partial = append(h.partial[:0], b...)
			return nil
		}
		path, _, ok := bytes.Cut(b[min(4, end):end], []byte(" "))
		if !ok || !bytes.HasPrefix(b, []byte("GET ")) {
			return errors.New("not a GET")
		}
		size, err := pathSize(string(path))
		if err != nil {
			return err
		}
		ask(size)
		b = b[end+4:]
	}
	h.partial = h.partial[:0]
	return nil
}

// h1Client is one connection's state.
type h1Client struct {
	partial []byte
	left    int // of the body
}

// feed takes what came and reports whether the answer is complete.
func (h *h1Client) feed(b []byte, size int) (bool, error) {
	if h.left > 0 {
		h.left -= len(b)
		return h.finished()
	}
	if len(h.partial) > 0 {
		h.partial = append(h.partial, b...)
		b = h.partial
	}
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		if len(b) > maxHead {
			return false, errors.New("a head without an end")
		}
		h.partial = append(h.partial[:0], b...)
		return false, nil
	}
	if !bytes.HasPrefix(b, []byte("HTTP/1.1 200 ")) {
		return false, fmt.Errorf("answer %q", b[:min(end, 64)])
	}
	length, ok := contentLength(b[:end])
	if !ok || length != size {
		return false, fmt.Errorf("an answer of %d bytes, expected %d", length, size)
	}
	h.left = length - (len(b) - end - 4)
	h.partial = h.partial[:0]
	return h.finished()
}

func (h *h1Client) finished() (bool, error) {
	if h.left < 0 {
		return false, errors.New("more than was asked for")
	}
	return h.left == 0, nil
}

// contentLength looks for the field in a head, in any case.
func contentLength(head []byte) (int, bool) {
	const name = "content-length: "
	for len(head) > 0 {
		line, rest, _ := bytes.Cut(head, []byte("\r\n"))
		if len(line) > len(name) && line[7] == '-' && bytes.EqualFold(line[:len(name)], []byte(name)) {
			n, err := strconv.Atoi(string(line[len(name):]))
			return n, err == nil
		}
		head = rest
	}
	return 0, false
}
