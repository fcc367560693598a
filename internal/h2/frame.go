package h2

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Frames (RFC 9113 4.1, 6).
const (
	frameData         = 0
	frameHeaders      = 1
	framePriority     = 2
	frameRST          = 3
	frameSettings     = 4
	framePush         = 5
	framePing         = 6
	frameGoAway       = 7
	frameWindowUpdate = 8
	frameContinuation = 9

	flagEndStream  = 1
	flagAck        = 1
	flagEndHeaders = 4
	flagPadded     = 8
	flagPriority   = 32

	headLen       = 9
	maxFrame      = 16384
	defaultWindow = 65535
	maxWindow     = 1<<31 - 1
	maxStreamID   = 1<<31 - 1

	preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
)

// Settings (RFC 9113 6.5.2, RFC 8441 3).
const (
	settingTableSize     = 1
	settingPush          = 2
	settingMaxStreams    = 3
	settingInitialWindow = 4
	settingMaxFrame      = 5
	settingMaxList       = 6
	settingConnect       = 8
)

// errorCode is RFC 9113 7.
type errorCode uint32

const (
	noError         errorCode = 0
	protocolError   errorCode = 1
	internalError   errorCode = 2
	flowControl     errorCode = 3
	streamClosed    errorCode = 5
	frameSize       errorCode = 6
	refusedStream   errorCode = 7
	cancelled       errorCode = 8
	compression     errorCode = 9
	enhanceYourCalm errorCode = 11
)

// drainPing is what is in the PING that announces the end of a connection.
const drainPing = "podseal\x00"

// connError ends a connection.
type connError struct {
	code errorCode
	what string
}

func (e *connError) Error() string { return fmt.Sprintf("%s (code %d)", e.what, e.code) }

func broken(code errorCode, what string) error { return &connError{code, what} }

// frame is one frame. payload and raw, which has the head too, are of the side's
// buffer and may be changed.
type frame struct {
	kind, flags byte
	id          uint32
	payload     []byte
	raw         []byte
}

func (f *frame) has(flag byte) bool { return f.flags&flag != 0 }

// errShort says that a frame is not complete.
var errShort = errors.New("more bytes are needed")

// nextFrame takes one frame off b.
func nextFrame(b []byte) (frame, error) {
	if len(b) < headLen {
		return frame{}, errShort
	}
	size := int(b[0])<<16 | int(b[1])<<8 | int(b[2])
	if size > maxFrame {
		return frame{}, broken(frameSize, "a frame is larger than 16384 bytes")
	}
	f := frame{kind: b[3], flags: b[4], id: binary.BigEndian.Uint32(b[5:]) & maxStreamID}
	if len(b) < headLen+size {
		return f, errShort
	}
	f.raw = b[:headLen+size] // its capacity shows whether another frame follows: see side.pass
	f.payload = f.raw[headLen:]
	return f, nil
}

// renumber changes the frame's stream in place.
func (f *frame) renumber(id uint32) {
	if f.id != id {
		binary.BigEndian.PutUint32(f.raw[5:], id)
		f.id = id
	}
}

// unpad returns the payload without padding and, of HEADERS, without priority.
func (f *frame) unpad() ([]byte, error) {
	p := f.payload
	pad := 0
	if f.has(flagPadded) {
		if len(p) == 0 {
			return nil, broken(frameSize, "a padded frame without a length of padding")
		}
		pad = int(p[0])
		p = p[1:]
	}
	if f.kind == frameHeaders && f.has(flagPriority) {
		if len(p) < 5 {
			return nil, broken(frameSize, "HEADERS are too short for a priority")
		}
		p = p[5:]
	}
	if pad > len(p) {
		return nil, broken(protocolError, "more padding than payload")
	}
	return p[:len(p)-pad], nil
}

// dependsOnItself reports whether a priority is on the stream's own (RFC 7540 5.3.1).
func (f *frame) dependsOnItself() bool {
	p := f.payload
	if f.kind == frameHeaders {
		if !f.has(flagPriority) {
			return false
		}
		if f.has(flagPadded) && len(p) > 0 {
			p = p[1:]
		}
	}
	return len(p) >= 4 && binary.BigEndian.Uint32(p)&maxStreamID == f.id
}

func appendHead(b []byte, size int, kind, flags byte, id uint32) []byte {
	b = append(b, byte(size>>16), byte(size>>8), byte(size), kind, flags)
	return binary.BigEndian.AppendUint32(b, id)
}

func appendRST(b []byte, id uint32, code errorCode) []byte {
	return binary.BigEndian.AppendUint32(appendHead(b, 4, frameRST, 0, id), uint32(code))
}

func appendWindowUpdate(b []byte, id, n uint32) []byte {
	return binary.BigEndian.AppendUint32(appendHead(b, 4, frameWindowUpdate, 0, id), n)
}

func appendPing(b []byte, data string, flags byte) []byte {
	return append(appendHead(b, 8, framePing, flags, 0), data...)
}

func appendGoAway(b []byte, last uint32, code errorCode) []byte {
	b = appendHead(b, 8, frameGoAway, 0, 0)
	b = binary.BigEndian.AppendUint32(b, last)
	return binary.BigEndian.AppendUint32(b, uint32(code))
}

func appendSetting(b []byte, id uint16, value uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(b, id), value)
}

// appendBlock appends a head as HEADERS and, if need be, CONTINUATION.
func appendBlock(b, block []byte, id uint32, flags byte) []byte {
	kind := byte(frameHeaders)
	for {
		part := block[:min(len(block), maxFrame)]
		block = block[len(part):]
		if len(block) == 0 {
			flags |= flagEndHeaders
		}
		b = append(appendHead(b, len(part), kind, flags, id), part...)
		if len(block) == 0 {
			return b
		}
		kind, flags = frameContinuation, 0
	}
}
