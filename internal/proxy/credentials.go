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
	fromCA       string // hash of the last bundle that came with a certificate
	fromMesh     string // hash of the last bundle that came with the mesh resource
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
		c.bundle = bundle
	}
	c.swap()
}

// trust takes what the mesh resource says of whom to trust. A bundle that can't
// be read leaves the one in force.
func (c *credentialStore) trust(bundlePEM []byte, trustDomains []string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var failed error
	if len(bundlePEM) > 0 {
		bundle, err := identity.ParseBundle(bundlePEM)
		failed = err
		if err == nil && bundle.Hash() != c.fromMesh {
			c.fromMesh = bundle.Hash()
			c.bundle = bundle
			if c.published != nil {
				c.published(bundle)
			}
		}
	}
	c.trustDomains = trustDomains
	c.swap()
	return failed
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

// sameTrust reports whether both trust the same roots and domains.
func sameTrust(a, b *identity.Snapshot) bool {
	return a.Bundle.Hash() == b.Bundle.Hash() && slices.Equal(a.TrustDomains, b.TrustDomains)
}
