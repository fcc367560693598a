package install

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"podseal.io/podseal/internal/settings"
)

// sourceOwn is the root that the control plane made.
const sourceOwn = "Secret " + settings.CASecret

// caInForce holds the CA that was given against the root that the mesh has. The
// control plane goes on with the last good one, but only until it starts anew.
func (c *Checker) caInForce(ctx context.Context) *finding {
	const hint = "docs/ca.md says how to change a CA step by step; kubectl -n d8-istio logs deployment/istiod"
	source, given, err := c.givenRoots(ctx)
	if err != nil {
		return cannotLook(err)
	}
	have, err := c.root(ctx, settings.Namespace)
	if err != nil {
		return cannotLook(err)
	}
	if source == "" || maps.Equal(certificates(given), certificates([]byte(have))) {
		return c.revocationList(ctx)
	}
	why := "the roots of the mesh are others"
	if said := c.caEvent(ctx, source, "BadCertificateAuthority", "CertificateAuthorityRefused", "BadRevocationList"); said != "" {
		why = said
	}
	return failed(hint, "%s is not in force, and will be when istiod starts anew: %s", source, why)
}

// revocationFile has the revocation lists that go with a plugged CA (contract 4.39).
const revocationFile = "ca-crl.pem"

// revocationsEnd is how long before a revocation list ends this is said.
const revocationsEnd = 48 * time.Hour

// revocationList finds lists of revoked certificates beside a CA that are not in force, or
// won't be for long: whoever wrote them believes that those are refused.
func (c *Checker) revocationList(ctx context.Context) *finding {
	s := &corev1.Secret{}
	err := c.Client.Get(ctx, types.NamespacedName{Namespace: settings.Namespace, Name: settings.PluggedCASecret}, s)
	if client.IgnoreNotFound(err) != nil {
		return cannotLook(err)
	}
	if len(s.Data[revocationFile]) == 0 {
		return nil
	}
	published := &corev1.ConfigMap{}
	if err := c.Client.Get(ctx, types.NamespacedName{Namespace: settings.Namespace, Name: settings.RootConfigMap}, published); err != nil {
		return cannotLook(err)
	}
	hash := sha256.Sum256(s.Data[revocationFile])
	if published.Annotations[settings.AnnotationRevocations] != hex.EncodeToString(hash[:8]) {
		why := "the last good ones stay, if there were any"
		if said := c.caEvent(ctx, "Secret "+settings.PluggedCASecret+": "+revocationFile, "BadRevocationList"); said != "" {
			why = said
		}
		return failed("docs/ca.md says what a list must be; kubectl -n d8-istio logs deployment/istiod", "%s in Secret %s is not in force: %s", revocationFile, settings.PluggedCASecret, why)
	}
	who, end := firstToEnd(s.Data[revocationFile])
	switch {
	case end.IsZero() || end.Sub(c.Now) > revocationsEnd:
		return nil
	case end.Before(c.Now):
		return failed("put newer lists into the Secret; to go on without, remove the file from it",
			"the revocation list of %q in Secret %s ended at %s, and proxies refuse all mutual TLS since then", who, settings.PluggedCASecret, end.Format(time.RFC3339))
	}
	return warned("put newer lists into the Secret", "the revocation list of %q in Secret %s ends at %s, and proxies refuse all mutual TLS from then on", who, settings.PluggedCASecret, end.Format(time.RFC3339))
}

// firstToEnd is whose of some revocation lists ends first, and when; the zero time if none
// does. They are in force, so they can be read.
func firstToEnd(text []byte) (who string, end time.Time) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		list, err := x509.ParseRevocationList(block.Bytes)
		if err == nil && !list.NextUpdate.IsZero() && (end.IsZero() || list.NextUpdate.Before(end)) {
			who, end = list.Issuer.String(), list.NextUpdate
		}
	}
	return who, end
}

// rootSettles is how long workloads may take to have a new root: the kubelets
// bring it to the pods, and look for it about once in a minute.
const rootSettles = 3 * time.Minute

// rootBackdated is how long before it was made a root is valid (contract 4.22).
const rootBackdated = 2 * time.Minute

// rootKept finds a root whose key is only in the memory of the control plane,
// and one that was made a moment ago for workloads that had another.
func (c *Checker) rootKept(ctx context.Context) *finding {
	source, roots, err := c.givenRoots(ctx)
	if err != nil {
		return cannotLook(err)
	}
	switch source {
	case "":
		return failed("bring the Secret back; docs/ca.md says how to change a CA step by step",
			"no Secret has the root's key any more, neither %s nor %s: it is in istiod's memory only, and the next start of istiod makes another root", settings.CASecret, settings.PluggedCASecret)
	case sourceOwn:
	default:
		return nil
	}
	block, _ := pem.Decode(roots)
	if block == nil {
		return nil // that is said elsewhere
	}
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return cannotLook(err)
	}
	made := root.NotBefore.Add(rootBackdated)
	age := max(0, c.Now.Sub(made)) // it may have been made while we waited
	if age >= rootSettles {
		return nil
	}
	pods, err := injectedPods(ctx, c.Client)
	if err != nil {
		return cannotLook(err)
	}
	older := slices.DeleteFunc(pods, func(p corev1.Pod) bool { return !p.CreationTimestamp.Time.Before(made) })
	if len(older) == 0 {
		return nil
	}
	return warned("wait: pods take the new root and a new certificate by themselves, without a restart; repeat this check",
		"the root was made %s ago, and %s older than it: calls between those that have it and those that don't yet fail", age.Round(time.Second), countOf(len(older), "pod is", "pods are"))
}

// countOf is a number with the word that goes with it.
func countOf(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// givenRoots reads the roots of the CA that is to be used (contract 4.32), and
// says whence; "" if there is none.
func (c *Checker) givenRoots(ctx context.Context) (source string, roots []byte, err error) {
	secret := func(name string) (map[string][]byte, error) {
		s := &corev1.Secret{}
		err := c.Client.Get(ctx, types.NamespacedName{Namespace: settings.Namespace, Name: name}, s)
		return s.Data, client.IgnoreNotFound(err)
	}
	plugged, err1 := secret(settings.PluggedCASecret)
	good, err2 := secret(settings.SettingsSecret)
	own, err3 := secret(settings.CASecret)
	if err := errors.Join(err1, err2, err3); err != nil {
		return "", nil, err
	}
	var s settings.Settings
	if len(good[settingsKey]) > 0 {
		if err := json.Unmarshal(good[settingsKey], &s); err != nil {
			return "", nil, err
		}
	}
	switch {
	case plugged != nil:
		return "Secret " + settings.PluggedCASecret, rootsOf(plugged), nil
	case s.CA != (settings.CA{}):
		return "ModuleConfig settings.ca", []byte(cmp.Or(s.CA.Root, s.CA.Cert)), nil
	case own != nil:
		return sourceOwn, rootsOf(own), nil
	}
	return "", nil, nil
}

// rootsOf picks the roots out of a Secret with a CA; a self-signed one is its
// own root.
func rootsOf(data map[string][]byte) []byte {
	for _, key := range []string{rootKey, "ca-cert.pem", "ca.crt", "tls.crt"} {
		if len(data[key]) > 0 {
			return data[key]
		}
	}
	return nil
}

// certificates is the set of those in PEM.
func certificates(text []byte) map[string]struct{} {
	set := map[string]struct{}{}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		set[string(block.Bytes)] = struct{}{}
	}
	return set
}

// caEvent is the last that the control plane said about the CA of a source for one of these
// reasons, "" if nothing.
func (c *Checker) caEvent(ctx context.Context, source string, reasons ...string) string {
	list := &corev1.EventList{}
	if err := c.Client.List(ctx, list, client.InNamespace(settings.Namespace)); err != nil {
		return ""
	}
	list.Items = slices.DeleteFunc(list.Items, func(e corev1.Event) bool {
		return !slices.Contains(reasons, e.Reason) || !strings.HasPrefix(e.Message, source+": ")
	})
	if len(list.Items) == 0 {
		return ""
	}
	last := slices.MaxFunc(list.Items, func(a, b corev1.Event) int { return lastSeen(&a).Compare(lastSeen(&b)) })
	return strings.TrimPrefix(last.Message, source+": ")
}

func lastSeen(e *corev1.Event) time.Time {
	if e.Series != nil {
		return e.Series.LastObservedTime.Time
	}
	return e.EventTime.Time
}
