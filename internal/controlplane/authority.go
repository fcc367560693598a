package controlplane

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/cache"

	"podseal.io/podseal/internal/ca"
	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/settings"
)

// servingTTL is the life of the certificate on 15012 and 15017; it is renewed
// at half of it.
const servingTTL = 24 * time.Hour

// settingsKey is where the settings stand in their Secret.
const settingsKey = "settings.json"

// Where an issuer comes from, first wins (contract 4.32).
const (
	sourcePlugged    = "Secret " + settings.PluggedCASecret
	sourceSettings   = "ModuleConfig settings.ca"
	sourceSelfSigned = "Secret " + settings.CASecret
)

var (
	errNoSettings = errors.New("waiting for Secret " + settings.SettingsSecret)
	errNoIssuer   = errors.New("waiting for a certificate authority")
)

type authorityConfig struct {
	Namespace string
	Now       func() time.Time
	Events    events.EventRecorder // may be nil
	Log       *slog.Logger
}

// authority holds the settings, the issuer and our own serving certificate. It
// takes them from Secrets as they change; one that is bad leaves the last good
// one in force.
type authority struct {
	cfg authorityConfig

	handled func() bool // the informer's first list has been handled

	mu       sync.Mutex
	synced   bool                      // nothing is decided before all Secrets were seen: one of them may win
	secrets  map[string]*corev1.Secret // by name, of those that matter
	settings *settings.Settings
	issuer   *ca.Issuer
	source   string
	revoked  *identity.Revocations // nil if there are none
	serving  *tls.Certificate
	problem  error // why what the Secrets say is not in force
	changed  chan struct{}
}

func newAuthority(cfg authorityConfig) *authority {
	return &authority{cfg: cfg, secrets: map[string]*corev1.Secret{}, changed: make(chan struct{})}
}

// serviceHost is the name by which proxies reach us.
func serviceHost(namespace string) string { return settings.ServiceName + "." + namespace + ".svc" }

// servingNames are what our certificate is for (contract 4.7).
func servingNames(namespace, clusterDomain string) []string {
	host := serviceHost(namespace)
	return []string{host, settings.ServiceName + "." + namespace, settings.ServiceName, host + "." + clusterDomain, "istiod-remote." + namespace + ".svc", "istio-pilot." + namespace + ".svc"}
}

// watch follows the Secrets.
func (a *authority) watch(ctx context.Context, from cache.Informers) error {
	informer, err := from.GetInformer(ctx, &corev1.Secret{})
	if err != nil {
		return fmt.Errorf("watch secrets: %w", err)
	}
	reg, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { a.see(obj, false) },
		UpdateFunc: func(_, obj any) { a.see(obj, false) },
		DeleteFunc: func(obj any) { a.see(obj, true) },
	})
	if err != nil {
		return fmt.Errorf("watch secrets: %w", err)
	}
	a.handled = reg.HasSynced
	return nil
}

// see takes in a Secret as it is now, or that it is gone.
func (a *authority) see(obj any, gone bool) {
	if tomb, ok := obj.(toolscache.DeletedFinalStateUnknown); ok {
		obj = tomb.Obj
	}
	s, ok := obj.(*corev1.Secret)
	if !ok {
		return
	}
	switch s.Name {
	case settings.SettingsSecret, settings.PluggedCASecret, settings.CASecret:
	default:
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if gone {
		delete(a.secrets, s.Name)
	} else {
		a.secrets[s.Name] = s
	}
	if a.synced {
		a.resolve()
	}
}

// start decides for the first time.
func (a *authority) start() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.synced = true
	a.resolve()
}

// resolve brings settings and issuer in line with the Secrets. a.mu is held.
func (a *authority) resolve() {
	before := [...]any{a.settings, a.issuer, a.serving, a.revoked, a.isLost()}
	a.problem = nil
	a.resolveSettings()
	if a.settings != nil {
		a.resolveIssuer()
		a.resolveServing()
	}
	if before != [...]any{a.settings, a.issuer, a.serving, a.revoked, a.isLost()} {
		close(a.changed)
		a.changed = make(chan struct{})
	}
}

// resolveSettings keeps the present settings if the Secret has none that can be read.
func (a *authority) resolveSettings() {
	secret := a.secrets[settings.SettingsSecret]
	if secret == nil {
		return
	}
	var s settings.Settings
	if err := json.Unmarshal(secret.Data[settingsKey], &s); err != nil {
		a.complain("SettingsUnreadable", fmt.Errorf("secret %s, key %s: %w", settings.SettingsSecret, settingsKey, err))
		return
	}
	if s.TrustDomain == "" || s.ClusterDomain == "" {
		a.complain("SettingsUnreadable", fmt.Errorf("secret %s, key %s: has no trust domain or no cluster domain", settings.SettingsSecret, settingsKey))
		return
	}
	a.settings = &s
}

// choose returns the files of the first source that has any (contract 4.32). A
// source that is bad is not passed over for the next: that would be another root.
func choose(secrets map[string]*corev1.Secret, s *settings.Settings) (source string, files ca.Files, found bool) {
	if secret := secrets[settings.PluggedCASecret]; secret != nil {
		files, _ = ca.FromSecret(secret.Data)
		return sourcePlugged, files, true
	}
	if s.CA != (settings.CA{}) {
		return sourceSettings, ca.Files{Cert: []byte(s.CA.Cert), Key: []byte(s.CA.Key), Chain: []byte(s.CA.Chain), Root: []byte(s.CA.Root)}, true
	}
	if secret := secrets[settings.CASecret]; secret != nil {
		files, _ = ca.FromSecret(secret.Data)
		return sourceSelfSigned, files, true
	}
	return "", ca.Files{}, false
}

func (a *authority) resolveIssuer() {
	source, files, found := choose(a.secrets, a.settings)
	if !found {
		return
	}
	now := a.cfg.Now()
	next, err := ca.ParseIssuer(files, now)
	if err != nil {
		a.complain("BadCertificateAuthority", fmt.Errorf("%s: %w", source, err))
		return
	}
	lists, good := a.resolveRevocations(source, next, now)
	if !good {
		return
	}
	if a.issuer != nil {
		if sameIssuer(a.issuer, next) {
			a.revoke(lists)
			return
		}
		if err := a.issuer.CheckSuccessor(next, now); err != nil { // contract 4.35
			a.complain("CertificateAuthorityRefused", fmt.Errorf("%s: %w", source, err))
			return
		}
	}
	a.issuer, a.source, a.serving = next, source, nil
	a.revoke(lists)
	a.cfg.Log.Info("certificate authority in force", slog.String("source", source), slog.String("bundle", next.Bundle().Hash()),
		slog.Time("not_after", next.Certificate().NotAfter))
}

func sameIssuer(a, b *ca.Issuer) bool {
	return a.Bundle().Hash() == b.Bundle().Hash() && a.Certificate().Equal(b.Certificate())
}

// resolveServing makes a serving certificate if there is none, or half of its
// life is over.
func (a *authority) resolveServing() {
	now := a.cfg.Now()
	if a.issuer == nil {
		return
	}
	names := servingNames(a.cfg.Namespace, a.settings.ClusterDomain)
	if a.serving != nil && now.Before(identity.RenewAt(a.serving.Leaf.NotBefore, a.serving.Leaf.NotAfter, 0)) && a.serving.Leaf.VerifyHostname(names[3]) == nil {
		return
	}
	c, err := a.issuer.ServingCertificate(names, servingTTL, now)
	if err != nil {
		a.complain("ServingCertificate", fmt.Errorf("make our serving certificate: %w", err))
		return
	}
	a.serving = &c
	a.cfg.Log.Info("serving certificate made", slog.Time("not_after", c.Leaf.NotAfter))
}

// complain says that something new is not in force.
func (a *authority) complain(reason string, err error) {
	a.problem = err
	a.cfg.Log.Error("bad input, the last good one stays in force", slog.String("reason", reason), slog.String("error", err.Error()))
	a.warn(reason, err.Error())
}

// warn writes an Event.
func (a *authority) warn(reason, text string) {
	if a.cfg.Events == nil {
		return
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: a.cfg.Namespace, Namespace: a.cfg.Namespace}}
	ns.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
	// Events that are alike but for their text are counted as one, with the text of the
	// first: so the action tells texts apart.
	sum := sha256.Sum256([]byte(text))
	a.cfg.Events.Eventf(ns, nil, corev1.EventTypeWarning, reason, "Check-"+hex.EncodeToString(sum[:4]), "%s", truncate(text))
}

// maxNote is how long an Event's text may be, in bytes.
const maxNote = 1000

func truncate(s string) string {
	if len(s) <= maxNote {
		return s
	}
	return strings.ToValidUTF8(s[:maxNote], "") + "…"
}

// Run decides once all Secrets were seen, and renews the serving certificate in
// time.
func (a *authority) Run(ctx context.Context) error {
	if !toolscache.WaitForCacheSync(ctx.Done(), a.handled) {
		return nil
	}
	a.start()
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			a.mu.Lock()
			a.resolve()
			a.mu.Unlock()
		}
	}
}

// Issuer returns what signs now.
func (a *authority) Issuer() (*ca.Issuer, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.issuer == nil {
		return nil, errors.Join(errNoIssuer, a.problem)
	}
	return a.issuer, nil
}

// Settings returns the settings in force.
func (a *authority) Settings() (settings.Settings, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.settings == nil {
		return settings.Settings{}, errors.Join(errNoSettings, a.problem)
	}
	return *a.settings, nil
}

// TrustDomain is the mesh's own (contract 4.3).
func (a *authority) TrustDomain() string {
	s, err := a.Settings()
	if err != nil {
		return ""
	}
	return s.TrustDomain
}

// Bundle is the PEM of the roots in force.
func (a *authority) Bundle() ([]byte, error) {
	issuer, err := a.Issuer()
	if err != nil {
		return nil, err
	}
	return issuer.Bundle().PEM(), nil
}

// Problem is what is wrong with the present input, although something earlier
// may be in force.
func (a *authority) Problem() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.problem
}

// Changed is closed at the next change of settings, issuer, revocation lists or serving certificate.
func (a *authority) Changed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.changed
}

// needsRoot reports whether a root of our own must be made: everything is known
// and there is no other source.
func (a *authority) needsRoot() (trustDomain string, needed bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.settings == nil || !a.synced {
		return "", false
	}
	_, _, found := choose(a.secrets, a.settings)
	return a.settings.TrustDomain, !found && a.issuer == nil
}

// isLost reports whether the root of our own making is in force and in no Secret
// any more. a.mu is held.
func (a *authority) isLost() bool {
	if a.settings == nil || a.issuer == nil || a.source != sourceSelfSigned || !a.synced {
		return false
	}
	_, _, found := choose(a.secrets, a.settings)
	return !found
}

// lost returns the root that is in no Secret any more, nil if there is none such.
func (a *authority) lost() *ca.Issuer {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.isLost() {
		return nil
	}
	return a.issuer
}

// selfSigned returns the issuer if it is of our own making.
func (a *authority) selfSigned() *ca.Issuer {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.source != sourceSelfSigned {
		return nil
	}
	return a.issuer
}

// TLSConfig serves with the certificate in force at each handshake.
func (a *authority) TLSConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			a.mu.Lock()
			defer a.mu.Unlock()
			if a.serving == nil {
				return nil, errNoIssuer
			}
			return a.serving, nil
		},
	}
}
