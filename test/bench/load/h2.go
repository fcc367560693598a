package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"golang.org/x/net/http2/hpack"
)

// What there is of HTTP/2 here: one request after the other, without bodies, and
// answers of a known size (RFC 9113).
const (
	frameData         = 0
	frameHeaders      = 1
	frameRST          = 3
	frameSettings     = 4
	framePing         = 6
	frameGoAway       = 7
	frameWindowUpdate = 8

	flagEndStream  = 1
	flagAck        = 1
	flagEndHeaders = 4
	flagPadded     = 8
	flagPriority   = 32

	settingTableSize     = 1
	settingPush          = 2
	settingInitialWindow = 4

	frameHeader   = 9
	maxFrame      = 16384
	defaultWindow = 65535
	maxWindow     = 1<<31 - 1

	preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
)

// frame is the head of a frame, and its payload where that was asked for.
type frame struct {
	kind, flags byte
	stream      uint32
	size        int
	payload     []byte
}

// framer cuts what comes in pieces into frames.
type framer struct {
	head    [frameHeader]byte
	have    int
	current frame
	left    int // of the payload
	payload []byte
}

// next consumes from b and returns what is left of it. A frame is done when ok;
// DATA has no payload then.
func (f *framer) next(b []byte) (rest []byte, done frame, ok bool, err error) {
	if f.have < frameHeader {
		n := copy(f.head[f.have:], b)
		f.have += n
		b = b[n:]
		if f.have < frameHeader {
			return nil, frame{}, false, nil
		}
		f.left = int(f.head[0])<<16 | int(f.head[1])<<8 | int(f.head[2])
		f.current = frame{kind: f.head[3], flags: f.head[4], stream: binary.BigEndian.Uint32(f.head[5:]) & maxWindow, size: f.left}
		f.payload = f.payload[:0]
		if f.left > maxFrame {
			return nil, frame{}, false, fmt.Errorf("a frame of %d bytes", f.left)
		}
	}
	n := min(f.left, len(b))
	if f.current.kind != frameData {
		f.payload = append(f.payload, b[:n]...)
	}
	f.left -= n
	if f.left > 0 {
		return b[n:], frame{}, false, nil
	}
	f.have = 0
	done = f.current
	done.payload = f.payload
	return b[n:], done, true, nil
}

func appendFrame(b []byte, kind, flags byte, stream uint32, payload []byte) []byte {
	n := len(payload)
	b = append(b, byte(n>>16), byte(n>>8), byte(n), kind, flags)
	b = binary.BigEndian.AppendUint32(b, stream)
	return append(b, payload...)
}

func appendSetting(b []byte, id uint16, value uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(b, id), value)
}

func appendWindowUpdate(b []byte, stream, n uint32) []byte {
	return appendFrame(b, frameWindowUpdate, 0, stream, binary.BigEndian.AppendUint32(nil, n))
}

// literal is a header field that no table keeps; name is its index in the static table.
func literal(b []byte, name byte, value string) []byte {
	if name < 15 {
		b = append(b, name)
	} else {
		b = append(b, 15, name-15)
	}
	return append(append(b, byte(len(value))), value...)
}

// Indices of the static table (RFC 7541, appendix A).
const (
	indexAuthority = 1
	indexGET       = 0x82
	indexPath      = 4
	indexHTTP      = 0x86
	index200       = 0x88
	indexLength    = 28
	indexType      = 31
	indexAgent     = 58
)

// h2Opening is what a client begins with.
func h2Opening() []byte {
	b := []byte(preface)
	settings := appendSetting(nil, settingTableSize, 0)
	settings = appendSetting(settings, settingPush, 0)
	settings = appendSetting(settings, settingInitialWindow, maxWindow)
	b = appendFrame(b, frameSettings, 0, 0, settings)
	return appendWindowUpdate(b, 0, maxWindow-defaultWindow)
}

// h2Request asks for size bytes.
func h2Request(b []byte, stream uint32, size int) []byte {
	block := []byte{indexGET, indexHTTP}
	block = literal(block, indexPath, "/"+strconv.Itoa(size))
	block = literal(block, indexAuthority, "server")
	block = literal(block, indexAgent, "bench")
	return appendFrame(b, frameHeaders, flagEndStream|flagEndHeaders, stream, block)
}

// h2Client is one connection's state.
type h2Client struct {
	framer
	stream   uint32 // of the request that is open
	got      int    // bytes of its answer
	consumed int    // bytes whose window has not been given back
}

// feed takes what came and returns how many answers are complete, and what must
// be sent now.
func (h *h2Client) feed(b, out []byte, size int) (int, []byte, error) {
	done := 0
	for len(b) > 0 {
		rest, f, ok, err := h.next(b)
		if err != nil {
			return done, out, err
		}
		b = rest
		if !ok {
			continue
		}
		switch f.kind {
		case frameData, frameHeaders:
			if f.kind == frameData {
				h.got += f.size
				h.consumed += f.size
			}
			if f.flags&flagEndStream != 0 && f.stream == h.stream {
				if h.got != size {
					return done, out, fmt.Errorf("an answer of %d bytes, expected %d", h.got, size)
				}
				h.got = 0
				done++
			}
		case frameRST, frameGoAway:
			return done, out, fmt.Errorf("frame of type %d: %x", f.kind, f.payload)
		default:
			out = h2Reply(out, f)
		}
	}
	if h.consumed > 1<<29 {
		out = appendWindowUpdate(out, 0, uint32(h.consumed))
		h.consumed = 0
	}
	return done, out, nil
}

// h2Reply acknowledges what must be.
func h2Reply(out []byte, f frame) []byte {
	if f.flags&flagAck != 0 {
		return out
	}
	switch f.kind {
	case frameSettings:
		return appendFrame(out, frameSettings, flagAck, 0, nil)
	case framePing:
		return appendFrame(out, framePing, flagAck, 0, f.payload)
	}
	return out
}

// h2Answer is one that is not sent in full.
type h2Answer struct {
	stream uint32
	left   int
	window int
}

// h2Server is one connection's state.
type h2Server struct {
	framer
	begun   bool // the preface was read
	decoder *hpack.Decoder
	path    string
	window  int // of the connection
	initial int // of a stream
	pending []h2Answer
}

func newH2Server() *h2Server {
	h := &h2Server{window: defaultWindow, initial: defaultWindow}
	h.decoder = hpack.NewDecoder(4096, func(f hpack.HeaderField) {
		if f.Name == ":path" {
			h.path = f.Value
		}
	})
	return h
}

// feed takes what came and appends what must be sent now.
func (h *h2Server) feed(b, out []byte) ([]byte, error) {
	if !h.begun {
		if len(b) < len(preface) || string(b[:len(preface)]) != preface {
			return out, errors.New("not HTTP/2")
		}
		h.begun, b = true, b[len(preface):]
		out = appendFrame(out, frameSettings, 0, 0, nil)
	}
	for len(b) > 0 {
		rest, f, ok, err := h.next(b)
		if err != nil {
			return out, err
		}
		b = rest
		if !ok {
			continue
		}
		switch f.kind {
		case frameHeaders:
			out, err = h.request(f, out)
		case frameSettings:
			h.settings(f)
			out = h2Reply(out, f)
		case frameWindowUpdate:
			err = h.update(f)
		case frameRST:
			h.pending = slices.DeleteFunc(h.pending, func(a h2Answer) bool { return a.stream == f.stream })
		case frameGoAway: // the client will end the connection
		default:
			out = h2Reply(out, f)
		}
		if err != nil {
			return out, err
		}
	}
	return h.send(out), nil
}

func (h *h2Server) settings(f frame) {
	for p := f.payload; f.flags&flagAck == 0 && len(p) >= 6; p = p[6:] {
		if binary.BigEndian.Uint16(p) == settingInitialWindow {
			now := int(binary.BigEndian.Uint32(p[2:]))
			for i := range h.pending {
				h.pending[i].window += now - h.initial
			}
			h.initial = now
		}
	}
}

func (h *h2Server) update(f frame) error {
	if len(f.payload) != 4 {
		return errors.New("a bad WINDOW_UPDATE")
	}
	n := int(binary.BigEndian.Uint32(f.payload))
	if f.stream == 0 {
		h.window += n
	}
	for i := range h.pending {
		if h.pending[i].stream == f.stream {
			h.pending[i].window += n
		}
	}
	return nil
}

// request begins an answer.
func (h *h2Server) request(f frame, out []byte) ([]byte, error) {
	block := f.payload
	if f.flags&flagPadded != 0 && len(block) > 0 {
		block = block[1:max(1, len(block)-int(block[0]))]
	}
	if f.flags&flagPriority != 0 && len(block) >= 5 {
		block = block[5:]
	}
	if f.flags&flagEndHeaders == 0 {
		return out, errors.New("a head in several frames")
	}
	h.path = ""
	if _, err := h.decoder.Write(block); err != nil {
		return out, err
	}
	if err := h.decoder.Close(); err != nil {
		return out, err
	}
	size, err := pathSize(h.path)
	if err != nil {
		return out, err
	}
	head := []byte{index200}
	head = literal(head, indexLength, strconv.Itoa(size))
	head = literal(head, indexType, "application/octet-stream")
	h.pending = append(h.pending, h2Answer{f.stream, size, h.initial})
	return appendFrame(out, frameHeaders, flagEndHeaders, f.stream, head), nil
}

// send appends as much of the answers as the windows allow.
func (h *h2Server) send(out []byte) []byte {
	for i := range h.pending {
		a := &h.pending[i]
		for n := min(a.left, a.window, h.window, maxFrame); n > 0; n = min(a.left, a.window, h.window, maxFrame) {
			a.left -= n
			a.window -= n
			h.window -= n
			flags := byte(0)
			if a.left == 0 {
				flags = flagEndStream
			}
			out = appendFrame(out, frameData, flags, a.stream, body[:n])
		}
	}
	h.pending = slices.DeleteFunc(h.pending, func(a h2Answer) bool { return a.left == 0 })
	return out
}

// pathSize is what a path asks for.
func pathSize(path string) (int, error) {
	if len(path) < 2 || path[0] != '/' {
		return 0, fmt.Errorf("path %q", path)
	}
	n, err := strconv.Atoi(path[1:])
	if err != nil || n < 1 || n > maxBody {
		return 0, fmt.Errorf("path %q asks for a size that is not served", path)
	}
	return n, nil
}
