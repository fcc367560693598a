package tlsconn

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"sync/atomic"

	"golang.org/x/crypto/chacha20poly1305"
)

const nonceLen = 12

// suite is a cipher suite of TLS 1.3 (RFC 8446 B.4).
type suite struct {
	hash    func() hash.Hash
	hashLen int
	keyLen  int
	aead    func(key []byte) (cipher.AEAD, error)
}

// suiteOf returns false for a suite that the record path doesn't know.
func suiteOf(id uint16) (suite, bool) {
	switch id {
	case tls.TLS_AES_128_GCM_SHA256:
		return suite{sha256.New, sha256.Size, 16, newGCM}, true
	case tls.TLS_AES_256_GCM_SHA384:
		return suite{sha512.New384, sha512.Size384, 32, newGCM}, true
	case tls.TLS_CHACHA20_POLY1305_SHA256:
		return suite{sha256.New, sha256.Size, chacha20poly1305.KeySize, chacha20poly1305.New}, true
	default:
		return suite{}, false
	}
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("aes: %w", err)
	}
	return cipher.NewGCM(block)
}

// expand is HKDF-Expand-Label with an empty context (RFC 8446 7.1).
func (s suite) expand(secret []byte, label string, n int) ([]byte, error) {
	const prefix = "tls13 "
	info := binary.BigEndian.AppendUint16(nil, uint16(n))
	info = append(info, byte(len(prefix)+len(label)))
	info = append(info, prefix...)
	info = append(info, label...)
	info = append(info, 0)
	return hkdf.Expand(s.hash, secret, string(info), n)
}

// cipher makes the cipher of a traffic secret.
func (s suite) cipher(secret []byte) (cipher.AEAD, error) {
	if len(secret) != s.hashLen {
		return nil, errors.New("traffic secret of a wrong length")
	}
	key, err := s.expand(secret, "key", s.keyLen)
	if err != nil {
		return nil, fmt.Errorf("derive key: %w", err)
	}
	defer clear(key)
	aead, err := s.aead(key)
	if err != nil {
		return nil, fmt.Errorf("make cipher: %w", err)
	}
	return aead, nil
}

// keys protect one direction of a connection (RFC 8446 5.3, 7.2, 7.3).
type keys struct {
	suite  suite
	secret []byte                      // traffic secret: the next one comes from it
	aead   atomic.Pointer[cipher.AEAD] // nil when it is to be made again: see rest
	iv     [nonceLen]byte
	nonce  [nonceLen]byte // scratch: what goes through an interface would be allocated
	seq    uint64         // of the next record
}

// use derives key and nonces from a traffic secret, which it keeps.
func (k *keys) use(s suite, secret []byte) error {
	aead, err := s.cipher(secret)
	if err != nil {
		return err
	}
	iv, err := s.expand(secret, "iv", nonceLen)
	if err != nil {
		return fmt.Errorf("derive nonce: %w", err)
	}
	k.forget()
	k.suite, k.secret, k.seq = s, secret, 0
	k.aead.Store(&aead)
	copy(k.iv[:], iv)
	clear(iv)
	return nil
}

// update goes to the next generation (RFC 8446 7.2).
func (k *keys) update() error {
	next, err := k.suite.expand(k.secret, "traffic upd", k.suite.hashLen)
	if err != nil {
		return fmt.Errorf("derive next traffic secret: %w", err)
	}
	return k.use(k.suite, next)
}

// forget makes the keys useless.
func (k *keys) forget() {
	clear(k.secret)
	clear(k.iv[:])
	clear(k.nonce[:])
	k.secret = nil
	k.aead.Store(nil)
}

// rest gives back the cipher, which takes as much memory as all else of a
// direction and is made again of the secret when it is needed. It may be called
// at any time.
func (k *keys) rest() { k.aead.Store(nil) }

// cipher returns the cipher. The keys must not have been forgotten.
func (k *keys) cipher() cipher.AEAD {
	if aead := k.aead.Load(); aead != nil {
		return *aead
	}
	aead, err := k.suite.cipher(k.secret)
	if err != nil {
		panic(err) // it could be made of the same secret before; of none nothing may be made
	}
	k.aead.Store(&aead)
	return aead
}

// current is the nonce of the next record (RFC 8446 5.3).
func (k *keys) current() []byte {
	k.nonce = k.iv
	tail := k.nonce[nonceLen-8:]
	binary.BigEndian.PutUint64(tail, binary.BigEndian.Uint64(tail)^k.seq)
	return k.nonce[:]
}

// seal protects a record in place: n bytes of content of a type stand behind the
// room for the header, and rec has room for the trailer. It returns the record's
// length.
func (k *keys) seal(rec []byte, n int, typ byte) int {
	size := n + trailerLen
	rec[0], rec[1], rec[2] = typeData, 3, 3
	binary.BigEndian.PutUint16(rec[3:], uint16(size))
	rec[headerLen+n] = typ
	inner := rec[headerLen : headerLen+n+1]
	k.cipher().Seal(inner[:0], k.current(), inner, rec[:headerLen])
	k.seq++
	return headerLen + size
}

// open returns the content of a whole record with its inner type and padding.
// The plaintext goes to the beginning of dst, or stays in place if dst is nil.
func (k *keys) open(dst, rec []byte) ([]byte, error) {
	sealed := rec[headerLen:]
	if dst == nil {
		dst = sealed
	}
	inner, err := k.cipher().Open(dst[:0], k.current(), sealed, rec[:headerLen])
	if err != nil {
		return nil, err //nolint:wrapcheck // it says nothing; callers know what it means
	}
	k.seq++
	return inner, nil
}
