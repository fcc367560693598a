package discovery

import (
	"cmp"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"podseal.io/podseal/internal/jwt"
	"podseal.io/podseal/internal/policy"
)

// KindRequestAuthentication is the kind of contract 1.38.
const KindRequestAuthentication = "RequestAuthentication"

// Bounds of a RequestAuthentication, as its CRD has them.
const (
	maxJWTRules = 4096
	maxSpaced   = 64
	maxKeysURI  = 2048
)

// defaultKeysTimeout is how long fetching keys may take.
const defaultKeysTimeout = 5 * time.Second

// issuerKeys begins what stands for keys that the issuer's own metadata lead to
// (OpenID Connect Discovery 4).
const issuerKeys = "issuer:"

// KeySource is where the keys of an issuer are fetched.
type KeySource struct {
	// From names the source in Cluster.Keys: the URL of a key set, or "issuer:" and
	// the issuer whose metadata lead to it.
	From    string
	Timeout time.Duration
}

// URL is what is fetched first; metadata says that it only leads to the keys. The
// error is for people.
func (s KeySource) URL() (u *url.URL, metadata bool, err error) {
	from, metadata := strings.CutPrefix(s.From, issuerKeys)
	if u, err = url.Parse(from); err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, metadata, fmt.Errorf("%q is not the URL of a web server", from)
	}
	if metadata {
		u = u.JoinPath(".well-known", "openid-configuration")
	}
	return u, metadata, nil
}

// FetchedKeys are the keys of one source.
type FetchedKeys struct {
	Set []byte // JSON Web Key Set, the last good one; nil if there was none
	Err string // why the last attempt failed, for people; "" if it didn't
}

// authenticationReader reads one RequestAuthentication. Whom it is for it reads as
// of an AuthorizationPolicy.
type authenticationReader struct {
	authorizationReader
	result  policy.RequestAuthentication
	sources []KeySource
}

// ValidateRequestAuthentication finds all that is wrong with a
// RequestAuthentication, and what its author may not expect of it.
func ValidateRequestAuthentication(obj *unstructured.Unstructured, rootNamespace string) (faults []Fault, warnings []string) {
	r := readRequestAuthentication(obj)
	if len(r.faults) == 0 {
		warnings = r.surprises(rootNamespace)
	}
	return r.faults, append(warnings, r.warnings...)
}

// readRequestAuthentication reads an object. Of a rule with faults no more is left
// than its issuer, whose tokens are then refused.
func readRequestAuthentication(obj *unstructured.Unstructured) *authenticationReader {
	r := &authenticationReader{}
	r.policy.Namespace = obj.GetNamespace()
	spec := r.object(obj.Object, "spec", "spec")
	r.onlyFields(spec, "spec", "selector", "targetRef", "targetRefs", "jwtRules")
	r.target(spec)
	r.unusable = len(r.faults) > 0
	r.result = policy.RequestAuthentication{Namespace: obj.GetNamespace(), Name: obj.GetName(), Selector: r.policy.Selector}
	rules := r.list(spec, "jwtRules", "spec.jwtRules")
	if len(rules) > maxJWTRules {
		r.fault("spec.jwtRules", "make several objects", "has %d entries, at most %d are allowed", len(rules), maxJWTRules)
		rules = rules[:maxJWTRules]
	}
	for i, raw := range rules {
		r.rule(raw, fmt.Sprintf("spec.jwtRules[%d]", i))
	}
	return r
}

func (r *authenticationReader) rule(raw any, path string) {
	obj, ok := raw.(map[string]any)
	if !ok {
		r.fault(path, "write a rule with an issuer, or leave the entry out", "must be an object")
		return
	}
	before := len(r.faults)
	r.onlyFields(obj, path, "issuer", "audiences", "jwksUri", "jwks_uri", "jwks", "fromHeaders", "fromParams", "fromCookies", "outputPayloadToHeader", "outputClaimToHeaders",
		"forwardOriginalToken", "timeout", "spaceDelimitedClaims")
	rule := policy.TokenRule{
		Issuer:        r.word(obj, "issuer", path),
		Audiences:     r.texts(obj, "audiences", path+".audiences"),
		Headers:       r.fromHeaders(obj, path),
		Params:        r.texts(obj, "fromParams", path+".fromParams"),
		Cookies:       r.texts(obj, "fromCookies", path+".fromCookies"),
		PayloadHeader: strings.ToLower(r.word(obj, "outputPayloadToHeader", path)),
		ClaimHeaders:  r.claimHeaders(obj, path),
		Forward:       r.flag(obj, "forwardOriginalToken", path+".forwardOriginalToken"),
		Spaced:        r.texts(obj, "spaceDelimitedClaims", path+".spaceDelimitedClaims"),
	}
	if rule.Issuer == "" {
		r.fault(path+".issuer", "write the iss claim of the tokens", "is empty")
	}
	if rule.PayloadHeader != "" {
		r.headerName(rule.PayloadHeader, path+".outputPayloadToHeader")
	}
	if len(rule.Spaced) > maxSpaced {
		r.fault(path+".spaceDelimitedClaims", "name fewer", "has %d entries, at most %d are allowed", len(rule.Spaced), maxSpaced)
	}
	source := r.keys(obj, path, &rule)
	if len(r.faults) > before {
		if rule.Issuer == "" {
			return
		}
		rule = policy.TokenRule{Issuer: rule.Issuer, KeysFrom: "a rule with a fault"}
	} else if source.From != "" {
		r.sources = append(r.sources, source)
	}
	r.result.Rules = append(r.result.Rules, rule)
}

// keys reads where the keys are: in the object, at a URL, or where the issuer says.
func (r *authenticationReader) keys(obj map[string]any, path string, rule *policy.TokenRule) KeySource {
	inline, uri := r.word(obj, "jwks", path), r.word(obj, "jwksUri", path)
	if uri == "" {
		uri = r.word(obj, "jwks_uri", path)
	}
	source := KeySource{Timeout: cmp.Or(r.duration(obj, "timeout", path+".timeout"), defaultKeysTimeout)}
	switch {
	case inline != "" && uri != "":
		r.fault(path+".jwks", "keep one of the two", "jwks and jwksUri can't both be set")
	case inline != "":
		if _, err := jwt.ParseKeys([]byte(inline)); err != nil {
			r.fault(path+".jwks", `write a JSON Web Key Set of public keys: {"keys": [...]}`, "%v", err)
		}
		rule.Keys = []byte(inline)
		return KeySource{}
	case uri != "":
		if source.From = uri; len(uri) > maxKeysURI {
			r.fault(path+".jwksUri", "use a shorter URL", "is %d characters long, at most %d are allowed", len(uri), maxKeysURI)
		} else if _, _, err := source.URL(); err != nil {
			r.fault(path+".jwksUri", "write the whole URL of a key set, with http:// or https://", "%v", err)
		}
	default:
		if source.From = issuerKeys + rule.Issuer; rule.Issuer != "" {
			if _, _, err := source.URL(); err != nil {
				r.warnings = append(r.warnings, fmt.Sprintf("%s: has neither jwks nor jwksUri, and the issuer is not a URL whose metadata could lead to keys: every token of it is refused", path))
			}
		}
	}
	rule.KeysFrom = source.From
	return source
}

func (r *authenticationReader) fromHeaders(obj map[string]any, path string) []policy.TokenHeader {
	path += ".fromHeaders"
	var out []policy.TokenHeader
	for i, entry := range r.objects(obj, "fromHeaders", path) {
		at := fmt.Sprintf("%s[%d]", path, i)
		r.onlyFields(entry, at, "name", "prefix")
		h := policy.TokenHeader{Name: strings.ToLower(r.word(entry, "name", at)), Prefix: r.word(entry, "prefix", at)}
		r.headerName(h.Name, at+".name")
		out = append(out, h)
	}
	return out
}

func (r *authenticationReader) claimHeaders(obj map[string]any, path string) []policy.ClaimHeader {
	path += ".outputClaimToHeaders"
	var out []policy.ClaimHeader
	for i, entry := range r.objects(obj, "outputClaimToHeaders", path) {
		at := fmt.Sprintf("%s[%d]", path, i)
		r.onlyFields(entry, at, "header", "claim")
		h := policy.ClaimHeader{Header: strings.ToLower(r.word(entry, "header", at)), Claim: r.word(entry, "claim", at)}
		r.headerName(h.Header, at+".header")
		if h.Claim == "" {
			r.fault(at+".claim", "name the claim to copy", "is empty")
		}
		if slices.ContainsFunc(out, func(o policy.ClaimHeader) bool { return o.Header == h.Header }) {
			r.fault(at+".header", "use another header", "%q is set by an earlier entry", h.Header)
		}
		out = append(out, h)
	}
	return out
}

func (r *authenticationReader) headerName(name, at string) {
	if err := policy.CheckFieldName(name); err != nil {
		r.fault(at, "write the name of a header of your own", "%v", err)
	}
}

// surprises is what a valid object does that its author may not expect.
func (r *authenticationReader) surprises(rootNamespace string) []string {
	if r.targeted {
		return []string{"spec.targetRef: is for gateways and waypoints, which Podseal has none of: the object has no effect; select pods by spec.selector"}
	}
	var out []string
	if r.bareSelector {
		out = append(out, "spec.selector: has no labels, so it selects all pods of the namespace as if it were absent")
	}
	if ns := r.result.Namespace; ns == istiosRoot && ns != rootNamespace {
		out = append(out, fmt.Sprintf("metadata.namespace: %s is not the root namespace here, so this holds for the pods of %s only; put an object for the whole mesh into %s", ns, ns, rootNamespace))
	}
	if len(r.result.Rules) == 0 {
		out = append(out, "spec.jwtRules: there is none, so no token is looked at")
	}
	return out
}

// word reads a field that must be text; absent is "".
func (r *authenticationReader) word(of map[string]any, name, path string) string {
	s, _ := r.text(of, name, path+"."+name)
	return s
}
