package proxy

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"podseal.io/podseal/internal/identity"
)

var (
	errNoCertificate = errors.New("no certificate has been issued to this proxy yet")
	errExpired       = errors.New("the certificate of this proxy has expired")
)

// credentialStore holds the snapshot in force and implements identity.Source. It is
// swapped whole, so no handshake sees a new certificate with old roots.
type credentialStore struct {
	now     func() time.Time
	changed func(*identity.Snapshot)
	current atomic.Pointer[identity.Snapshot]
	issued  chan struct{} // closed with the first certificate

	mu           sync.Mutex
	published    func(*identity.Bundle) // told each new bundle of the mesh resource; may be nil
	credential   *identity.Credential
	bundle       *identity.Bundle
	revoked      *identity.Revocations // nil if there are no lists
	fromCA       string                // hash of the last bundle that came with a certificate
	said         *identity.Bundle      // the last that came with the mesh resource
	trustDomains []string
}

// newCredentials has no snapshot yet. changed is called when whom we trust has
// changed, not when only the own certificate has.
func newCredentials(now func() time.Time, changed func(*identity.Snapshot)) *credentialStore {
	return &credentialStore{now: now, changed: changed, issued: make(chan struct{})}
}

// Snapshot implements identity.Source.
func (c *credentialStore) Snapshot() (*identity.Snapshot, error) {
	s := c.current.Load()
	switch {
	case s == nil:
		return nil, errNoCertificate
	case c.now().After(s.Credential.Leaf.NotAfter):
		return nil, errExpired
	}
	return s, nil
}

// follow has f told each bundle that the mesh resource brings from now on. f
// must return at once.
func (c *credentialStore) follow(f func(*identity.Bundle)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.published = f
}

// renewed takes a new certificate into force. The bundle that came with it
// replaces the one in force only if it is another than came the last time:
// otherwise what the mesh resource said later would be undone by each renewal
// (contract 4.37).
func (c *credentialStore) renewed(credential *identity.Credential, bundle *identity.Bundle) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.credential = credential
	if bundle != nil && bundle.Hash() != c.fromCA {
		c.fromCA = bundle.Hash()
		c.bundle = bundle.WithRevocations(c.revoked)
	}
	c.swap()
}

// trust takes what the mesh resource says of whom to trust. A bundle that can't
// be read leaves the one in force, and so do revocation lists (contract 4.39).
func (c *credentialStore) trust(bundlePEM, revokedPEM []byte, trustDomains []string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	said := c.said
	var failed error
	if len(bundlePEM) > 0 {
		bundle, err := identity.ParseBundle(bundlePEM)
		failed = err
		if err == nil && (said == nil || bundle.Hash() != said.Hash()) {
			said, c.bundle = bundle, bundle
		}
	}
	lists, err := c.lists(revokedPEM)
	if lists != c.revoked && c.bundle != nil || said != c.said {
		c.bundle = c.bundle.WithRevocations(lists)
	}
	if said != nil && (said != c.said || lists != c.revoked) && c.published != nil {
		c.published(said.WithRevocations(lists))
	}
	c.said, c.revoked, c.trustDomains = said, lists, trustDomains
	c.swap()
	return errors.Join(failed, err)
}

// lists are those in force if nothing else is said, or nothing that can be read: each
// change of the world says all again, and they may be long.
func (c *credentialStore) lists(revokedPEM []byte) (*identity.Revocations, error) {
	switch {
	case len(revokedPEM) == 0:
		return nil, nil //nolint:nilnil // there are none
	case c.revoked != nil && c.revoked.Is(revokedPEM):
		return c.revoked, nil
	}
	lists, err := identity.ParseRevocations(revokedPEM)
	if err != nil {
		return c.revoked, err
	}
	return lists, nil
}

// swap puts what is known in force. Callers hold mu.
func (c *credentialStore) swap() {
	if c.credential == nil || c.bundle == nil {
		return
	}
	old := c.current.Load()
	s := &identity.Snapshot{Credential: c.credential, Bundle: c.bundle, TrustDomains: c.trustDomains}
	if len(s.TrustDomains) == 0 {
		s.TrustDomains = []string{c.credential.ID.TrustDomain()}
	}
	if old != nil && old.Credential == s.Credential && sameTrust(old, s) {
		return
	}
	c.current.Store(s)
	if old == nil {
		close(c.issued)
	}
	if old == nil || !sameTrust(old, s) {
		c.changed(s)
	}
}

// sameTrust reports whether both trust the same roots and domains, and revoke the same.
func sameTrust(a, b *identity.Snapshot) bool {
	return a.Bundle.Same(b.Bundle) && slices.Equal(a.TrustDomains, b.TrustDomains)
}
