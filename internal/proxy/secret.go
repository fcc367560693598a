package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"

	"podseal.io/podseal/internal/identity"
)

const (
	secretTimeout = 5 * time.Second
	secretFresh   = 30 * time.Second // a Secret is read again after so long, when it is needed
	secretRetry   = 5 * time.Second  // after a failure it isn't asked for earlier
	maxSecrets    = 64               // names that are kept
	maxSecretBody = 4 << 20          // a Secret has 1 MiB at most, in base64
	caSuffix      = "-cacert"        // of the Secret that has the roots, if they stand apart
)

var (
	// errNoSecret is a definite answer: there is none, or it isn't ours to read.
	errNoSecret = errors.New("it can't be read")
	errNoAPI    = errors.New("this pod has no token for the API server (automountServiceAccountToken), so no Secret can be read")
)

// API says where the API server is and how the pod's own account is known to it.
type API struct {
	Address   string // host:port; "" is nowhere
	RootFile  string // PEM
	TokenFile string
}

// secrets reads the Secrets that DestinationRules name in credentialName: of the
// pod's own namespace, with the pod's own account, so that Kubernetes decides
// whether this pod may have them (contract 3.37). What was read is in memory only.
type secrets struct {
	api       API
	namespace string
	now       func() time.Time

	mu   sync.Mutex
	kept map[string]*secretEntry
}

// secretEntry is one credentialName.
type secretEntry struct {
	used time.Time // guarded by secrets.mu

	mu       sync.Mutex // held while it is read
	material credentialMaterial
	err      error
	next     time.Time // when to read again
}

// credentialMaterial is what TLS takes from a Secret.
type credentialMaterial struct {
	cert  *tls.Certificate // nil if there is none
	roots *x509.CertPool   // nil likewise
}

func newSecrets(api API, namespace string, now func() time.Time) *secrets {
	return &secrets{api: api, namespace: namespace, now: now, kept: map[string]*secretEntry{}}
}

// get returns what is known of a name, reading it if that is old. When the API
// server can't be asked, what was read before stays; when it says no, that holds.
func (s *secrets) get(ctx context.Context, name string) (credentialMaterial, error) {
	e := s.entry(name)
	e.mu.Lock()
	defer e.mu.Unlock()
	now := s.now()
	if now.Before(e.next) {
		return e.material, e.err
	}
	ctx, cancel := context.WithTimeout(ctx, secretTimeout)
	defer cancel()
	material, err := s.read(ctx, name)
	switch {
	case err == nil:
		e.material, e.err, e.next = material, nil, now.Add(secretFresh)
	case errors.Is(err, errNoSecret) || e.material == credentialMaterial{}:
		e.material, e.err, e.next = credentialMaterial{}, err, now.Add(secretRetry)
	default:
		e.next = now.Add(secretRetry)
	}
	if errors.Is(err, context.Canceled) { // says nothing about the Secret
		e.next = now
	}
	return e.material, e.err
}

func (e *secretEntry) lastUsed() *time.Time { return &e.used }

// entry finds or makes the entry of a name.
func (s *secrets) entry(name string) *secretEntry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return keptEntry(s.kept, name, maxSecrets, s.now(), func() *secretEntry { return &secretEntry{} })
}

// read makes of Secrets what TLS needs: certificate and key of the named one, roots
// of the one beside it, else of the same. Keys of a Secret are tls.crt and tls.key,
// or cert and key; ca.crt, or cacert.
func (s *secrets) read(ctx context.Context, name string) (credentialMaterial, error) {
	var m credentialMaterial
	roots, err := s.fetch(ctx, name+caSuffix)
	if err != nil && !errors.Is(err, errNoSecret) {
		return m, err
	}
	own, err := s.fetch(ctx, name)
	if err != nil && (roots == nil || !errors.Is(err, errNoSecret)) {
		return m, err
	}
	if first(roots, "cacert", "ca.crt") == nil {
		roots = own
	}
	if text := first(roots, "cacert", "ca.crt"); text != nil {
		certs, err := identity.ParseCertificates(text)
		if err != nil {
			return m, fmt.Errorf("%w: roots of Secret %s: %w", errNoSecret, name, err)
		}
		m.roots = x509.NewCertPool()
		for _, c := range certs {
			m.roots.AddCert(c)
		}
	}
	chain, key := first(own, "cert", "tls.crt"), first(own, "key", "tls.key")
	if chain != nil && key != nil {
		cert, err := tls.X509KeyPair(chain, key)
		if err != nil {
			return m, fmt.Errorf("%w: certificate and key of Secret %s: %w", errNoSecret, name, err)
		}
		m.cert = &cert
	}
	if m.cert == nil && m.roots == nil {
		return m, fmt.Errorf("%w: Secret %s has neither a certificate with its key nor roots", errNoSecret, name)
	}
	return m, nil
}

func first(of map[string][]byte, names ...string) []byte {
	for _, name := range names {
		if v := of[name]; len(v) > 0 {
			return v
		}
	}
	return nil
}

// fetch asks the API server for one Secret. An account may be allowed to get it or
// to list it; users of Istio grant list.
func (s *secrets) fetch(ctx context.Context, name string) (map[string][]byte, error) {
	if s.api.Address == "" {
		return nil, errNoAPI
	}
	base := "https://" + s.api.Address + "/api/v1/namespaces/" + url.PathEscape(s.namespace) + "/secrets"
	type secret struct {
		Data map[string][]byte `json:"data"`
	}
	var one secret
	status, err := s.ask(ctx, base+"/"+url.PathEscape(name), &one)
	if err == nil && status == http.StatusForbidden {
		var list struct {
			Items []secret `json:"items"`
		}
		status, err = s.ask(ctx, base+"?"+url.Values{"fieldSelector": {"metadata.name=" + name}}.Encode(), &list)
		if err == nil && status == http.StatusOK {
			if len(list.Items) == 0 {
				status = http.StatusNotFound
			} else {
				one = list.Items[0]
			}
		}
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("read Secret %s: %w", name, err)
	case status == http.StatusOK:
		return one.Data, nil
	case status == http.StatusNotFound:
		return nil, fmt.Errorf("%w: there is no Secret %s in namespace %s", errNoSecret, name, s.namespace)
	case status == http.StatusForbidden:
		return nil, fmt.Errorf("%w: the pod's service account may neither get nor list Secret %s", errNoSecret, name)
	default:
		return nil, fmt.Errorf("read Secret %s: the API server answered %d", name, status)
	}
}

// ask decodes the body of an answer that is OK. Of others nothing is kept.
func (s *secrets) ask(ctx context.Context, address string, into any) (status int, err error) {
	token, err := readToken(s.api.TokenFile)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = errNoAPI
		}
		return 0, err
	}
	roots, err := rootsOf(s.api.RootFile)
	if err != nil {
		return 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	if err != nil {
		return 0, fmt.Errorf("ask the API server: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Accept", "application/json")
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // the token is for this server
	}
	res, err := client.Do(req)
	if err != nil {
		return 0, fmt.Errorf("ask the API server: %w", err)
	}
	defer func() { _ = res.Body.Close() }() // nothing was written
	if res.StatusCode != http.StatusOK {
		return res.StatusCode, nil
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxSecretBody))
	if err != nil {
		return 0, fmt.Errorf("read the API server's answer: %w", err)
	}
	defer clear(body)
	if err := json.Unmarshal(body, into); err != nil {
		return 0, errors.New("the API server's answer is not JSON") // what is wrong with it may be in the error, and secret
	}
	return res.StatusCode, nil
}
