package wire

const (
	maxChunkLine = 4 << 10  // bytes of one line that gives a chunk's size, with extensions
	maxOverhead  = 16 << 10 // bytes of such lines that the data doesn't outweigh
	maxTrailer   = 8 << 10  // bytes of the whole trailer section
	maxTrailerID = 256      // bytes of a trailer field's name, where somebody looks at it
)

type chunkState uint8

const (
	chunkSize chunkState = iota
	chunkSpace
	chunkExtension
	chunkSizeLF
	chunkData
	chunkDataCR
	chunkDataLF
	trailerStart
	trailerName
	trailerValue
	trailerLF
	chunkEndLF
	chunkDone
)

// claims are what no trailer may say, since it is passed on unread: how long a
// message is and where it goes (RFC 9110 6.5.1), and who its sender is. A reader
// that joins trailers to the header would believe it.
var claims = [...]string{"content-length", "transfer-encoding", "host", "connection", "upgrade", ClientCertField}

// ClientCertField is the header field that says who a client has proved to be.
const ClientCertField = "x-forwarded-client-cert"

// IsClientCert reports whether a field is ClientCertField, or will be taken for
// it by a gateway to CGI or its kin, which can't tell `_` from `-`.
func IsClientCert(name []byte) bool {
	if len(name) != len(ClientCertField) {
		return false
	}
	for i, c := range name {
		if claimByte(c) != ClientCertField[i] {
			return false
		}
	}
	return true
}

// claimByte is a byte of a field name, in lower case and with `_` for `-`.
func claimByte(c byte) byte {
	switch {
	case 'A' <= c && c <= 'Z':
		return c + 'a' - 'A'
	case c == '_':
		return '-'
	}
	return c
}

// ChunkTracker finds the end of a chunked body (RFC 9112 7.1), trailer section
// included, in bytes that are passed on unchanged. The zero value is at the
// start of a body. It is strict: CRLF only, no sign or prefix before a size, no
// trailer that says what only a header may.
type ChunkTracker struct {
	// HeaderOnly, if set, names further fields that no trailer may be. It is given
	// names in lower case and with `-` for `_`, which it must not keep.
	HeaderOnly func(name []byte) bool

	state    chunkState
	claims   uint8  // by bit, those of claims that the trailer field's name may yet be
	named    uint16 // bytes of that name so far, at most maxTrailer
	name     []byte // likewise, for HeaderOnly
	digits   int
	left     int64 // bytes of the current chunk
	line     int   // bytes of the current size line
	overhead int64
	trailer  int
}

// Done reports whether the body has ended.
func (t *ChunkTracker) Done() bool { return t.state == chunkDone }

// Advance takes the bytes that come next and returns how many of them belong to
// the body: all of them unless the body ends before. Errors are ErrTooLarge or
// wrap ErrMalformed, and final.
func (t *ChunkTracker) Advance(b []byte) (int, error) {
	for i := 0; i < len(b); {
		if t.state == chunkDone {
			return i, nil
		}
		if t.state == chunkData {
			n := min(t.left, int64(len(b)-i))
			i += int(n)
			if t.left -= n; t.left == 0 {
				t.state = chunkDataCR
			}
			continue
		}
		var err error
		if t.state <= chunkSizeLF {
			err = t.sizeByte(b[i])
		} else {
			err = t.otherByte(b[i])
		}
		if err != nil {
			return i, err
		}
		i++
	}
	return len(b), nil
}

// sizeByte takes a byte of the line `size [; extensions]`.
func (t *ChunkTracker) sizeByte(c byte) error {
	if t.line++; t.line > maxChunkLine {
		return ErrTooLarge
	}
	switch t.state {
	case chunkSize:
		digit, ok := hexDigit(c)
		if ok {
			if t.digits++; t.digits > 15 {
				return ErrTooLarge
			}
			t.left = t.left<<4 | digit
			return nil
		}
		if t.digits == 0 {
			return malformed("chunk size")
		}
		return t.afterSize(c)
	case chunkSpace:
		return t.afterSize(c)
	case chunkExtension:
		if c == '\r' {
			t.state = chunkSizeLF
			return nil
		}
		if c < ' ' && c != '\t' || c == 0x7f {
			return malformed("chunk extension")
		}
		return nil
	default:
		if c != '\n' {
			return malformed("line of a chunk size")
		}
		return t.startChunk()
	}
}

func (t *ChunkTracker) afterSize(c byte) error {
	switch c {
	case ' ', '\t':
		t.state = chunkSpace
	case ';':
		t.state = chunkExtension
	case '\r':
		t.state = chunkSizeLF
	default:
		return malformed("chunk size")
	}
	return nil
}

func (t *ChunkTracker) startChunk() error {
	// Tiny chunks with long extensions cost us much and carry nothing.
	t.overhead = max(0, t.overhead+int64(t.line)-16-2*t.left)
	if t.overhead > maxOverhead {
		return ErrTooLarge
	}
	t.line, t.digits = 0, 0
	t.state = chunkData
	if t.left == 0 {
		t.state = trailerStart
	}
	return nil
}

// otherByte takes a byte after a chunk or of the trailer section.
func (t *ChunkTracker) otherByte(c byte) error {
	if t.state >= trailerStart {
		if t.trailer++; t.trailer > maxTrailer {
			return ErrTooLarge
		}
	}
	switch t.state {
	case chunkDataCR:
		return t.expect(c, '\r', chunkDataLF)
	case chunkDataLF:
		return t.expect(c, '\n', chunkSize)
	case trailerStart:
		if c == '\r' {
			t.state = chunkEndLF
			return nil
		}
		t.state, t.named, t.claims, t.name = trailerName, 0, 1<<len(claims)-1, t.name[:0]
		return t.nameByte(c)
	case trailerName:
		if c != ':' {
			return t.nameByte(c)
		}
		if t.claimed() {
			return malformed("trailer that says what only a header may")
		}
		t.state = trailerValue
	case trailerValue:
		if c == '\r' {
			t.state = trailerLF
		} else if c < ' ' && c != '\t' || c == 0x7f {
			return malformed("trailer field value")
		}
	case trailerLF:
		return t.expect(c, '\n', trailerStart)
	default:
		return t.expect(c, '\n', chunkDone)
	}
	return nil
}

// nameByte takes a byte of a trailer field's name.
func (t *ChunkTracker) nameByte(c byte) error {
	if !isTokenByte(c) {
		return malformed("trailer field name")
	}
	for i, claim := range claims {
		if at := int(t.named); at >= len(claim) || claim[at] != claimByte(c) {
			t.claims &^= 1 << i
		}
	}
	t.named++
	if t.HeaderOnly != nil {
		if t.name = append(t.name, claimByte(c)); len(t.name) > maxTrailerID {
			return ErrTooLarge
		}
	}
	return nil
}

// claimed reports whether the name that has ended is one that no trailer may have.
func (t *ChunkTracker) claimed() bool {
	for i, claim := range claims {
		if t.claims>>i&1 == 1 && int(t.named) == len(claim) {
			return true
		}
	}
	return t.HeaderOnly != nil && t.HeaderOnly(t.name)
}

func (t *ChunkTracker) expect(c, want byte, next chunkState) error {
	if c != want {
		return malformed("line end in a chunked body")
	}
	t.state = next
	return nil
}

func hexDigit(c byte) (int64, bool) {
	switch {
	case '0' <= c && c <= '9':
		return int64(c - '0'), true
	case 'a' <= c && c <= 'f':
		return int64(c-'a') + 10, true
	case 'A' <= c && c <= 'F':
		return int64(c-'A') + 10, true
	}
	return 0, false
}
