package tlsconn

import (
	"crypto/sha256"
	"crypto/x509"
	"runtime"
	"sync"
	"weak"
)

// certificates lets connections to the same peer share what was parsed of its
// certificate: several kilobytes that would otherwise stay with each. Nothing is
// kept that no connection has. The zero value is ready.
type certificates struct {
	known sync.Map // fingerprint [sha256.Size]byte → weak.Pointer[x509.Certificate]
}

// shared returns the chain with each certificate replaced by an equal one that
// is in use already, if there is one.
func (s *certificates) shared(chain []*x509.Certificate) []*x509.Certificate {
	same := make([]*x509.Certificate, len(chain))
	for i, c := range chain {
		same[i] = s.one(c)
	}
	return same
}

func (s *certificates) one(c *x509.Certificate) *x509.Certificate {
	print := sha256.Sum256(c.Raw)
	fresh := weak.Make(c)
	for {
		there, ok := s.known.LoadOrStore(print, fresh)
		if !ok {
			runtime.AddCleanup(c, func(w weak.Pointer[x509.Certificate]) { s.known.CompareAndDelete(print, w) }, fresh)
			return c
		}
		if known, ok := there.(weak.Pointer[x509.Certificate]); ok {
			if used := known.Value(); used != nil {
				return used
			}
		}
		s.known.CompareAndDelete(print, there) // it is no more, and its cleanup has yet to run
	}
}
