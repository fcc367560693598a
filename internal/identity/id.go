// Package identity says who a peer is and how it proves it.
//
// An identity is `<TrustDomain>/ns/<Namespace>/sa/<ServiceAccount>`; in a
// certificate it is the one URI SAN `spiffe://` plus that text (contract 4.1).
// A peer proves it with a certificate chain to a root of the [Bundle], checked
// in VerifyConnection so that resumed sessions are checked too. The package
// does no I/O and takes the time as an argument.
package identity

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// ID is who a workload is. It is comparable; the zero ID is no identity.
type ID struct {
	trustDomain    string
	namespace      string
	serviceAccount string
}

// New returns the ID of a service account. An empty service account means
// "default" (contract 4.2); `@` in the trust domain becomes `.` (contract 4.1).
func New(trustDomain, namespace, serviceAccount string) (ID, error) {
	trustDomain = strings.ReplaceAll(trustDomain, "@", ".")
	id, err := ParseURI("spiffe://" + trustDomain + "/ns/" + namespace + "/sa/" + cmp.Or(serviceAccount, "default"))
	if err != nil {
		return ID{}, fmt.Errorf("identity of service account %q in namespace %q: %w", serviceAccount, namespace, err)
	}
	return id, nil
}

// MustNew is New for tests and constants.
func MustNew(trustDomain, namespace, serviceAccount string) ID {
	id, err := New(trustDomain, namespace, serviceAccount)
	if err != nil {
		panic(err)
	}
	return id
}

// ParseURI reads `spiffe://<td>/ns/<ns>/sa/<sa>`: exactly these five parts
// (contract 4.1).
func ParseURI(uri string) (ID, error) {
	s, err := spiffeid.FromString(uri)
	if err != nil {
		return ID{}, fmt.Errorf("parse %q: %w", uri, err)
	}
	parts := strings.Split(s.Path(), "/")
	if len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return ID{}, fmt.Errorf("parse %q: %w", uri, errShape)
	}
	return ID{s.TrustDomain().Name(), parts[2], parts[4]}, nil
}

// Parse reads `<td>/ns/<ns>/sa/<sa>`, the form that people write.
func Parse(s string) (ID, error) { return ParseURI("spiffe://" + s) }

var errShape = errors.New("an identity has the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>")

// TrustDomain is the mesh that vouches for the identity.
func (id ID) TrustDomain() string { return id.trustDomain }

// Namespace is the Kubernetes namespace of the service account.
func (id ID) Namespace() string { return id.namespace }

// ServiceAccount is the name of the service account.
func (id ID) ServiceAccount() string { return id.serviceAccount }

// IsZero reports whether id is no identity.
func (id ID) IsZero() bool { return id == ID{} }

// SameAccount reports whether two identities differ at most in the trust domain:
// a mesh knows its own workloads under each of its trust domains (contract 4.4).
func (id ID) SameAccount(other ID) bool {
	return id.namespace == other.namespace && id.serviceAccount == other.serviceAccount
}

// String is `<td>/ns/<ns>/sa/<sa>`, or "" for no identity.
func (id ID) String() string {
	if id.IsZero() {
		return ""
	}
	return id.trustDomain + "/ns/" + id.namespace + "/sa/" + id.serviceAccount
}

// URI is the identity as it stands in a certificate, or "" for no identity.
func (id ID) URI() string {
	if id.IsZero() {
		return ""
	}
	return "spiffe://" + id.String()
}
