package controlplane

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"

	"podseal.io/podseal/internal/ca"
	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/settings"
)

// revocationFile is where revocation lists stand, beside a plugged CA (contract 4.39).
const revocationFile = "ca-crl.pem"

// Reasons of Events about revocation lists. Checks look for them.
const (
	badRevocations   = "BadRevocationList"
	endedRevocations = "RevocationListEnded"
)

// given are the revocation lists that go with a source of the CA.
func (a *authority) given(source string) []byte {
	secret := a.secrets[settings.PluggedCASecret]
	if source != sourcePlugged || secret == nil {
		return nil
	}
	return secret.Data[revocationFile]
}

// resolveRevocations says which lists are in force with an issuer, and whether that may
// be in force: peers accept nothing that a CA without a list has signed as soon as there
// is any list (contract 4.40). Bad lists leave the last good ones in force. If these
// don't go with the issuer, or there are none, the issuer isn't taken either: going on
// without would accept what is revoked.
func (a *authority) resolveRevocations(source string, next *ca.Issuer, now time.Time) (*identity.Revocations, bool) {
	text := a.given(source)
	if len(text) == 0 {
		return nil, true
	}
	lists, err := a.readRevocations(text)
	if err == nil {
		err = judgeRevocations(lists, next, now)
	}
	switch ended := errors.Is(err, identity.ErrRevocationListEnded); {
	case err == nil:
		return lists, true
	case ended && (a.revoked == nil || a.revoked == lists || errors.Is(judgeRevocations(a.revoked, next, now), identity.ErrRevocationListEnded)):
		a.complain(endedRevocations, fmt.Errorf("%s: %s: %w: proxies refuse mutual TLS until there is a newer one", source, revocationFile, err))
		return lists, true
	}
	a.complain(badRevocations, fmt.Errorf("%s: %s: %w", source, revocationFile, err))
	if a.revoked == nil {
		// One that was in force without lists goes on; at the start there is no such.
		return nil, a.issuer != nil && sameIssuer(a.issuer, next)
	}
	return a.revoked, judgeRevocations(a.revoked, next, now) == nil || sameIssuer(a.issuer, next)
}

// readRevocations doesn't read again what is in force: it is looked at every minute.
func (a *authority) readRevocations(text []byte) (*identity.Revocations, error) {
	if a.revoked != nil && a.revoked.Is(text) {
		return a.revoked, nil
	}
	return identity.ParseRevocations(text)
}

// judgeRevocations says why lists can't be in force with an issuer. That one has ended
// is the answer only if there is no other fault.
func judgeRevocations(lists *identity.Revocations, i *ca.Issuer, now time.Time) error {
	path, err := i.Path(now)
	if err != nil {
		return err
	}
	known := append(append([]*x509.Certificate{}, path...), i.Bundle().Roots()...)
	if err := lists.Judge(known, now); err != nil {
		return err
	}
	if _, err := lists.Check(path, now); err != nil {
		return fmt.Errorf("the chain of the CA that signs: %w", err)
	}
	return nil
}

// revoke takes lists into force, nil for none.
func (a *authority) revoke(lists *identity.Revocations) {
	if lists == a.revoked {
		return
	}
	a.revoked = lists
	if lists == nil {
		a.cfg.Log.Warn("no revocation list is in force any more")
		return
	}
	a.cfg.Log.Info("revocation lists in force", slog.String("hash", lists.Hash()), slog.Int("revoked", lists.Len()))
	for _, root := range a.issuer.Bundle().Roots() {
		if _, err := lists.Check([]*x509.Certificate{root}, a.cfg.Now()); errors.Is(err, identity.ErrNoRevocationList) {
			a.cfg.Log.Warn("peers whose certificates lead to this root are refused, as it has no revocation list", slog.String("root", root.Subject.String()))
		}
	}
}

// revocationsLeft is how many seconds are left until the first of the lists in force ends;
// infinite if none does.
func (a *authority) revocationsLeft(now time.Time) float64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.revoked == nil || a.revoked.Ends().IsZero() {
		return math.Inf(1)
	}
	return a.revoked.Ends().Sub(now).Seconds()
}

// revocationsHash names the lists in force, "" if there are none.
func (a *authority) revocationsHash() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.revoked.Hash()
}

// RevokedPEM are the revocation lists in force, empty if there are none.
func (a *authority) RevokedPEM() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.revoked == nil {
		return nil
	}
	return a.revoked.PEM()
}
