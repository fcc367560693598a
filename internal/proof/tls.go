package proof

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"fmt"
)

// RecordType is the content type of a TLS record (RFC 8446 5.1). In TLS 1.3 all
// that is encrypted, alerts too, is application data.
type RecordType byte

// The content types.
const (
	ChangeCipherSpec RecordType = 20
	Alert            RecordType = 21
	Handshake        RecordType = 22
	ApplicationData  RecordType = 23
)

func (r RecordType) String() string {
	switch r {
	case ChangeCipherSpec:
		return "change-cipher-spec"
	case Alert:
		return "alert"
	case Handshake:
		return "handshake"
	case ApplicationData:
		return "application-data"
	}
	return fmt.Sprintf("record-type-%d", byte(r))
}

const (
	recordHeader = 5
	// maxRecord is the longest record of TLS 1.2 (RFC 5246 6.2.3).
	maxRecord = 1<<14 + 2048
)

// plausibleRecord reports whether bytes, at most five, can begin a TLS record.
func plausibleRecord(b []byte) bool {
	if len(b) > 0 && (b[0] < byte(ChangeCipherSpec) || b[0] > byte(ApplicationData)) {
		return false
	}
	if len(b) > 1 && b[1] != 3 || len(b) > 2 && b[2] > 4 {
		return false
	}
	if len(b) < recordHeader {
		return true
	}
	size := int(binary.BigEndian.Uint16(b[3:]))
	return size > 0 && size <= maxRecord
}

// serverHello is what the server chose.
type serverHello struct {
	version, cipher uint16
	group           tls.CurveID // of TLS 1.3's key share; 0 if there is none
}

// retryRandom is the random of a HelloRetryRequest (RFC 8446 4.1.3).
var retryRandom = []byte{
	0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
	0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
}

// findServerHello reads the handshake messages of a server, as far as they came in
// the clear, up to the hello that isn't a retry.
func findServerHello(b []byte) (serverHello, bool) {
	for len(b) >= 4 {
		kind, size := b[0], int(b[1])<<16|int(b[2])<<8|int(b[3])
		if len(b)-4 < size {
			return serverHello{}, false
		}
		if kind == 2 {
			h, retry, ok := parseServerHello(b[4 : 4+size])
			if !ok || !retry {
				return h, ok
			}
		}
		b = b[4+size:]
	}
	return serverHello{}, false
}

// parseServerHello reads RFC 8446 4.1.3: version, random, session id, cipher suite,
// compression, extensions.
func parseServerHello(b []byte) (h serverHello, retry, ok bool) {
	if len(b) < 35 {
		return h, false, false
	}
	h.version = binary.BigEndian.Uint16(b)
	retry = bytes.Equal(b[2:34], retryRandom)
	session := int(b[34])
	b = b[35:]
	if len(b) < session+3 {
		return h, false, false
	}
	h.cipher = binary.BigEndian.Uint16(b[session:])
	b = b[session+3:]
	if len(b) == 0 {
		return h, retry, true // TLS 1.2 without extensions
	}
	if len(b) < 2 || len(b)-2 != int(binary.BigEndian.Uint16(b)) {
		return h, false, false
	}
	for b = b[2:]; len(b) > 0; {
		if len(b) < 4 || len(b)-4 < int(binary.BigEndian.Uint16(b[2:])) {
			return h, false, false
		}
		size := int(binary.BigEndian.Uint16(b[2:]))
		body := b[4 : 4+size]
		switch kind := binary.BigEndian.Uint16(b); {
		case kind == 43 && size == 2: // supported_versions
			h.version = binary.BigEndian.Uint16(body)
		case kind == 51 && size >= 2: // key_share
			h.group = tls.CurveID(binary.BigEndian.Uint16(body))
		}
		b = b[4+size:]
	}
	return h, retry, true
}
