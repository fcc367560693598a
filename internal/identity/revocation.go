package identity

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"sync"
	"time"
)

// What revocation lists may be, in all: bytes of PEM, lists, and certificates that they
// revoke. A quarter of this is more than a Secret beside a CA will ever hold.
const (
	MaxRevocationBytes = 512 << 10
	maxLists           = 64
	maxRevoked         = 10_000
	maxSigners         = 256 // of which it is remembered which list is theirs
)

var (
	// ErrRevoked says that a certificate of a chain is revoked.
	ErrRevoked = errors.New("a certificate is revoked")
	// ErrNoRevocationList says that a CA of a chain has no list, so nobody knows.
	ErrNoRevocationList = errors.New("a CA has no revocation list")
	// ErrRevocationListEnded says that the list of a CA is no longer to be believed.
	ErrRevocationListEnded = errors.New("a revocation list has ended")
)

// Revocations are the lists of revoked certificates of CAs (RFC 5280, section 5), as
// they stand in ca-crl.pem (contract 4.39). Where there are any, every CA of a chain
// needs one, the root too (contract 4.40). It is immutable, but for what it remembers.
type Revocations struct {
	pem   []byte
	hash  string
	lists []*revocationList

	mu sync.Mutex
	of map[[sha256.Size]byte]*revocationList // by the CA's certificate; nil if it has none
}

// revocationList is that of one CA.
type revocationList struct {
	raw     *x509.RevocationList // without its entries
	revoked map[string]struct{}  // serial numbers, as big-endian bytes
}

// ParseRevocations reads PEM blocks of type X509 CRL and nothing else. Whether a list is
// signed by its CA is found out when that is at hand: a CA may show itself only in the
// chain of a peer. A list that says less, or more, than which certificates of its CA are
// revoked (deltas, parts, other issuers' certificates) is refused.
func ParseRevocations(pemBytes []byte) (*Revocations, error) {
	if len(pemBytes) > MaxRevocationBytes {
		return nil, fmt.Errorf("parse revocation lists: %d bytes, at most %d are allowed", len(pemBytes), MaxRevocationBytes)
	}
	sum := sha256.Sum256(pemBytes)
	r := &Revocations{pem: bytes.Clone(pemBytes), hash: hex.EncodeToString(sum[:8]), of: map[[sha256.Size]byte]*revocationList{}}
	revoked := 0
	for rest := pemBytes; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if len(bytes.TrimSpace(rest)) > 0 {
				return nil, fmt.Errorf("parse revocation lists: after list %d: not PEM", len(r.lists))
			}
			break
		}
		if block.Type != "X509 CRL" {
			return nil, fmt.Errorf("parse revocation lists: PEM block of type %q where an X509 CRL is expected", block.Type)
		}
		l, err := parseList(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse revocation lists: list %d: %w", len(r.lists)+1, err)
		}
		if revoked += len(l.revoked); revoked > maxRevoked || len(r.lists) == maxLists {
			return nil, fmt.Errorf("parse revocation lists: more than %d lists, or than %d revoked certificates", maxLists, maxRevoked)
		}
		r.lists = append(r.lists, l)
	}
	if len(r.lists) == 0 {
		return nil, errors.New("parse revocation lists: no PEM block of type X509 CRL")
	}
	// the newest of a CA's lists is the one that counts
	slices.SortStableFunc(r.lists, func(a, b *revocationList) int {
		if n := b.raw.ThisUpdate.Compare(a.raw.ThisUpdate); n != 0 {
			return n
		}
		return number(b).Cmp(number(a))
	})
	return r, nil
}

func number(l *revocationList) *big.Int {
	if l.raw.Number == nil {
		return new(big.Int)
	}
	return l.raw.Number
}

func parseList(der []byte) (*revocationList, error) {
	raw, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, err
	}
	for _, e := range raw.Extensions {
		if e.Critical {
			return nil, fmt.Errorf("it has a critical extension, %s: lists that are deltas or parts are not understood", e.Id)
		}
	}
	l := &revocationList{raw: raw, revoked: make(map[string]struct{}, len(raw.RevokedCertificateEntries))}
	for _, entry := range raw.RevokedCertificateEntries {
		for _, e := range entry.Extensions {
			if e.Critical {
				return nil, fmt.Errorf("the entry for serial number %s has a critical extension, %s", entry.SerialNumber.Text(16), e.Id)
			}
		}
		l.revoked[serialKey(entry.SerialNumber)] = struct{}{}
	}
	raw.RevokedCertificateEntries = nil
	return l, nil
}

// serialKey tells serial numbers apart, negative ones too.
func serialKey(n *big.Int) string { return n.Text(62) }

// PEM returns the lists as they were read.
func (r *Revocations) PEM() []byte { return bytes.Clone(r.pem) }

// Hash is a short name of the content, "" of none: equal lists have equal hashes.
func (r *Revocations) Hash() string {
	if r == nil {
		return ""
	}
	return r.hash
}

// Is reports whether these are the lists that were read from there.
func (r *Revocations) Is(pemBytes []byte) bool { return bytes.Equal(r.pem, pemBytes) }

// Len is how many certificates are revoked.
func (r *Revocations) Len() (n int) {
	for _, l := range r.lists {
		n += len(l.revoked)
	}
	return n
}

// Ends is when the first of the lists ends, the zero time if none does.
func (r *Revocations) Ends() (first time.Time) {
	for _, l := range r.lists {
		if end := l.raw.NextUpdate; !end.IsZero() && (first.IsZero() || end.Before(first)) {
			first = end
		}
	}
	return first
}

// Check says whether a chain, which has been verified from a leaf or a CA up to its
// root, holds by the lists: until when it does, the zero time for ever, or why not.
// ErrRevocationListEnded is the answer only if there is no other fault.
func (r *Revocations) Check(chain []*x509.Certificate, now time.Time) (until time.Time, err error) {
	for i, c := range chain {
		authority := chain[min(i+1, len(chain)-1)]
		l := r.list(authority)
		if l == nil {
			return time.Time{}, fmt.Errorf("%w: %q", ErrNoRevocationList, authority.Subject)
		}
		if _, revoked := l.revoked[serialKey(c.SerialNumber)]; revoked {
			return time.Time{}, fmt.Errorf("%w: serial number %s of %q", ErrRevoked, c.SerialNumber.Text(16), authority.Subject)
		}
		switch end := l.raw.NextUpdate; {
		case end.IsZero():
		case now.After(end):
			err = fmt.Errorf("%w: that of %q, at %s", ErrRevocationListEnded, authority.Subject, end.Format(time.RFC3339))
		case until.IsZero() || end.Before(until):
			until = end
		}
	}
	return until, err
}

// list is that of a CA, nil if it has none. It must have been verified that it is a CA.
func (r *Revocations) list(authority *x509.Certificate) *revocationList {
	key := sha256.Sum256(authority.Raw)
	r.mu.Lock()
	l, known := r.of[key]
	r.mu.Unlock()
	if known {
		return l
	}
	for _, candidate := range r.lists {
		if bytes.Equal(candidate.raw.RawIssuer, authority.RawSubject) && candidate.raw.CheckSignatureFrom(authority) == nil {
			l = candidate
			break
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.of) < maxSigners {
		r.of[key] = l
	}
	return l
}

// Judge says what is wrong with the lists to somebody who knows these CAs: a list that
// one of them ought to have signed and has not, and one that begins after now.
func (r *Revocations) Judge(authorities []*x509.Certificate, now time.Time) error {
	for _, l := range r.lists {
		if l.raw.ThisUpdate.After(now) {
			return fmt.Errorf("the list of %q begins at %s only", l.raw.Issuer, l.raw.ThisUpdate.Format(time.RFC3339))
		}
		var failed error
		for _, a := range authorities {
			if !bytes.Equal(l.raw.RawIssuer, a.RawSubject) {
				continue
			}
			if by, key := l.raw.AuthorityKeyId, a.SubjectKeyId; len(by) > 0 && len(key) > 0 && !bytes.Equal(by, key) {
				continue // it is another CA's of the same name
			}
			if failed = l.raw.CheckSignatureFrom(a); failed == nil {
				break
			}
		}
		if failed != nil {
			return fmt.Errorf("the list of %q is not signed by that CA: %w", l.raw.Issuer, failed)
		}
	}
	return nil
}
