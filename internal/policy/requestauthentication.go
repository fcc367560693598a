package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"podseal.io/podseal/internal/jwt"
)

// RequestAuthentication is one such object, already valid: whose tokens a
// workload's requests may have (contract 1.38).
type RequestAuthentication struct {
	Namespace, Name string
	// Selector is empty for the whole namespace, or the mesh. Proxies are told the
	// Scope instead.
	Selector map[string]string
	Scope    Scope
	Rules    []TokenRule
}

// Key is "<namespace>/<name>".
func (r *RequestAuthentication) Key() string { return r.Namespace + "/" + r.Name }

// Concerns reports whether the object may hold for a workload of the namespace.
func (r *RequestAuthentication) Concerns(namespace string) bool {
	return r.Scope == Mesh || r.Scope == MeshWorkloads || r.Namespace == namespace
}

// Applies reports whether the object counts for a workload with these labels in
// this namespace, as an AuthorizationPolicy does (contract 6.1).
func (r *RequestAuthentication) Applies(rootNamespace, namespace string, labels map[string]string) bool {
	return (r.Namespace == namespace || r.Namespace == rootNamespace) && matches(r.Selector, labels)
}

// TokenRule is where tokens of one issuer are found, and what becomes of them.
type TokenRule struct {
	Issuer    string
	Audiences []string // of which a token must name one; none is any
	Keys      []byte   // JSON Web Key Set; empty while it could not be fetched
	KeysFrom  string   // what the control plane fetches them by; "" if they stand in the object

	// Where to look. With none of the three: a bearer token in Authorization, and the
	// parameter access_token.
	Headers []TokenHeader
	Params  []string
	Cookies []string

	PayloadHeader string // gets the token's payload, in base64url; "" is none
	ClaimHeaders  []ClaimHeader
	Forward       bool     // the application gets the token, too
	Spaced        []string // claims that are lists of words, besides scope and permission; paths with dots
}

// TokenHeader is a field, its name in lower case, and what stands in it before
// the token.
type TokenHeader struct{ Name, Prefix string }

// ClaimHeader copies a claim, of a path with dots, to a field with this name in
// lower case.
type ClaimHeader struct{ Header, Claim string }

// maxTokens bounds how many tokens of one request are looked at for one rule.
const maxTokens = 8

// bearer begins what an Authorization field with a token has.
const bearer = "Bearer "

// KeepKeys takes from an earlier version of the object the keys that this one has
// none of, where they are fetched from the same place for the same issuer: keys that
// can't be fetched at the moment are no worse for it.
func (r *RequestAuthentication) KeepKeys(earlier *RequestAuthentication) {
	for i := range r.Rules {
		rule := &r.Rules[i]
		for j := range earlier.Rules {
			old := &earlier.Rules[j]
			if len(rule.Keys) == 0 && rule.KeysFrom != "" && rule.KeysFrom == old.KeysFrom && rule.Issuer == old.Issuer {
				rule.Keys = old.Keys
			}
		}
	}
}

// CheckAuthentication finds what of an object can't be compiled, joined.
func CheckAuthentication(r *RequestAuthentication) error {
	_, err := NewAuthentication([]*RequestAuthentication{r}, nil)
	return err
}

func (r *RequestAuthentication) selective() bool { return r.Scope.Selective() }

// NewAuthentication compiles objects that all apply to one workload. missing are
// the keys of objects that apply but aren't known: until they are, no request may
// pass. The error joins all faults; it is not nil only if an object would not pass
// CheckAuthentication.
func NewAuthentication(all []*RequestAuthentication, missing []string) (*Authentication, error) {
	if len(all) == 0 && len(missing) == 0 {
		return nil, nil //nolint:nilnil // a nil Authentication is a value: it looks for no token
	}
	a := &Authentication{}
	if len(missing) > 0 {
		a.pending = slices.Min(missing)
	}
	var faults []error
	for _, r := range all {
		for i := range r.Rules {
			c, err := compileTokenRule(&r.Rules[i])
			if err != nil {
				faults = append(faults, fmt.Errorf("request authentication %s: rule %d: %w", r.Key(), i, err))
				continue
			}
			c.object, c.number = r.Key(), i
			a.rules = append(a.rules, c)
			a.own(&r.Rules[i])
		}
	}
	return a, errors.Join(faults...)
}

// own notes which fields only this proxy may set.
func (a *Authentication) own(r *TokenRule) {
	names := []string{r.PayloadHeader}
	for _, c := range r.ClaimHeaders {
		names = append(names, c.Header)
	}
	for _, name := range names {
		if name != "" && !slices.Contains(a.owned, name) {
			a.owned = append(a.owned, name)
		}
	}
}

// compileTokenRule makes a rule ready for use.
func compileTokenRule(r *TokenRule) (tokenRule, error) {
	c := tokenRule{TokenRule: *r, spaced: [][]string{{"scope"}, {"permission"}}, verified: newTokenCache()}
	if len(c.Headers)+len(c.Params)+len(c.Cookies) == 0 {
		c.Headers, c.Params = []TokenHeader{{"authorization", bearer}}, []string{"access_token"}
	}
	for _, path := range r.Spaced {
		c.spaced = append(c.spaced, strings.Split(path, "."))
	}
	var faults []error
	if r.Issuer == "" {
		faults = append(faults, errors.New("no issuer"))
	}
	names := []string{}
	for _, h := range c.Headers {
		names = append(names, h.Name)
	}
	for _, h := range r.ClaimHeaders {
		names = append(names, h.Header)
	}
	if r.PayloadHeader != "" {
		names = append(names, r.PayloadHeader)
	}
	for _, name := range names {
		if err := CheckFieldName(name); err != nil {
			faults = append(faults, err)
		} else if name != strings.ToLower(name) {
			faults = append(faults, fmt.Errorf("%q is not in lower case", name))
		}
	}
	if len(r.Keys) > 0 {
		keys, err := jwt.ParseKeys(r.Keys)
		if err != nil {
			faults = append(faults, fmt.Errorf("key set: %w", err))
		}
		c.keys = keys
	} else if r.KeysFrom == "" {
		faults = append(faults, errors.New("no keys, and nowhere to fetch them"))
	}
	return c, errors.Join(faults...)
}

// CheckFieldName says whether a name can be that of a field of HTTP (RFC 9110
// 5.6.2) that a proxy may set.
func CheckFieldName(name string) error {
	if name == "" {
		return errors.New("the name of a header is empty")
	}
	for _, c := range []byte(name) {
		letter := 'a' <= c|0x20 && c|0x20 <= 'z'
		if !letter && strings.IndexByte("0123456789!#$%&'*+-.^_`|~", c) < 0 {
			return fmt.Errorf("%q is not the name of a header", name)
		}
	}
	switch strings.ToLower(name) {
	case "host", "connection", "content-length", "transfer-encoding", "upgrade", "te", "trailer", "keep-alive", "proxy-connection", "expect", "x-forwarded-client-cert":
		return fmt.Errorf("%q is a header that HTTP or the mesh itself needs", name)
	}
	return nil
}
