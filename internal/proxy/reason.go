package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"syscall"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/policy"
)

// reasonOf says in one word why a handshake or a verification failed.
func reasonOf(err error) policy.Reason {
	var (
		unknown   x509.UnknownAuthorityError
		invalid   x509.CertificateInvalidError
		unhandled x509.UnhandledCriticalExtension
		verify    *tls.CertificateVerificationError
	)
	switch {
	case errors.Is(err, errTLSSettings):
		return policy.TLSSettings
	case errors.Is(err, identity.ErrPeerIdentity):
		return policy.PeerIdentity
	case errors.Is(err, identity.ErrTrustDomain):
		return policy.ForeignTrustDomain
	case errors.Is(err, identity.ErrRevoked):
		return policy.PeerRevoked
	case errors.Is(err, identity.ErrNoRevocationList), errors.Is(err, identity.ErrRevocationListEnded):
		return policy.PeerUnverified
	case errors.As(err, &unknown), errors.As(err, &invalid), errors.As(err, &unhandled), errors.As(err, &verify):
		return policy.PeerUnverified
	case errors.Is(err, errNoCertificate), errors.Is(err, errExpired):
		return policy.NoIdentity
	case errors.Is(err, os.ErrDeadlineExceeded):
		return policy.HandshakeTimeout
	default:
		return policy.HandshakeFailed
	}
}

// dialReason says in one word why a connection could not be made.
func dialReason(err error) policy.Reason {
	var netErr net.Error
	if errors.As(err, &netErr) && netErr.Timeout() {
		return policy.ConnectTimeout
	}
	return policy.ConnectFailed
}

// isAlert reports whether the peer sent a TLS alert.
func isAlert(err error) bool {
	var alert tls.AlertError
	var op *net.OpError
	return errors.As(err, &alert) || (errors.As(err, &op) && op.Op == "remote error")
}

// isGone reports whether the other side has already closed the connection.
func isGone(err error) bool {
	return errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.ENOTCONN)
}
