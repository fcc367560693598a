package policy

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"maps"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"podseal.io/podseal/internal/jwt"
)

// Authentication says whose tokens the requests to one workload may have: what
// all RequestAuthentications that apply to it amount to. It is immutable but for
// what it remembers of tokens that it has verified, and of matches. A nil Authentication looks for
// no token.
type Authentication struct {
	rules   []tokenRule
	owned   []string // fields that only this proxy may set
	pending string
}

// tokenRule is a TokenRule, compiled.
type tokenRule struct {
	TokenRule
	keys     *jwt.Keys // nil if they could not be fetched
	spaced   [][]string
	verified *tokenCache
	object   string // its key
	number   int    // in the object
	hits     hits
}

// Authenticated is what is known of a request by its token.
type Authenticated struct {
	// Failure is why the request must be refused, nil if it may go on.
	Failure error
	// Token is nil if there is none.
	Token *Token
	// Remove are fields that go before the request is passed on, in lower case.
	Remove []string
	// Path is the target without the tokens in it; "" if it stays.
	Path string
	// Set are fields that come in the place of what the client sent.
	Set []Field
}

// Field is a header field, its name in lower case.
type Field struct{ Name, Value string }

// Pending is the key of an object that applies and isn't known, or "".
func (a *Authentication) Pending() string {
	if a == nil {
		return ""
	}
	return a.pending
}

// Owned are the fields, in lower case, that tell the application what a token
// says: what a client sends under their names must not reach it.
func (a *Authentication) Owned() []string {
	if a == nil {
		return nil
	}
	return a.owned
}

// Carries reports whether a field, its name in lower case, is one that a token may
// stand in.
func (a *Authentication) Carries(name string) bool {
	if a == nil {
		return false
	}
	for i := range a.rules {
		for _, h := range a.rules[i].Headers {
			if h.Name == name {
				return true
			}
		}
	}
	return false
}

// Authenticate looks for tokens where the rules say. A request without one
// passes. One with a token that a rule accepts passes as that token's; all that a
// rule finds must be good. If no rule accepts what is found, the request is refused
// (contract 1.38).
func (a *Authentication) Authenticate(r *Request, now time.Time) Authenticated {
	if a == nil {
		return Authenticated{}
	}
	var failure error
	for i := range a.rules {
		rule := &a.rules[i]
		raws := rule.find(r)
		if len(raws) == 0 {
			continue
		}
		token, err := rule.accept(raws, now)
		if err == nil {
			rule.hits.note(OutcomeAllowed)
			return rule.accepted(r, token)
		}
		if !errors.Is(err, jwt.ErrIssuer) { // the token of another rule is not this one's to refuse
			rule.hits.note(OutcomeDenied)
		}
		if failure == nil || errors.Is(failure, jwt.ErrIssuer) { // that it is another's says less
			failure = err
		}
	}
	return Authenticated{Failure: failure}
}

// find returns the tokens of a request that stand where the rule looks.
func (r *tokenRule) find(q *Request) []string {
	var found []string
	for _, h := range r.Headers {
		if v, ok := q.field(h.Name); ok {
			found = inHeader(found, string(v), h.Prefix)
		}
	}
	for _, name := range r.Params {
		for _, pair := range params(q.Path) {
			if pair.name == name {
				found = append(found, pair.value)
			}
		}
	}
	if len(r.Cookies) > 0 {
		if v, ok := q.field("cookie"); ok {
			for _, name := range r.Cookies {
				found = inCookie(found, string(v), name)
			}
		}
	}
	return found
}

// inHeader appends the tokens behind each prefix; without a prefix the value is
// the token.
func inHeader(found []string, value, prefix string) []string {
	if prefix == "" {
		return append(found, strings.TrimSpace(value))
	}
	for {
		_, rest, ok := strings.Cut(value, prefix)
		if !ok {
			return found
		}
		rest = strings.TrimLeft(rest, " ")
		end := strings.IndexFunc(rest, func(c rune) bool { return c == ',' || c == ' ' || c == ';' })
		if end < 0 {
			end = len(rest)
		}
		found, value = append(found, rest[:end]), rest[end:]
	}
}

// inCookie appends the values of the cookies with a name.
func inCookie(found []string, value, name string) []string {
	for pair := range strings.FieldsFuncSeq(value, func(c rune) bool { return c == ';' || c == ',' }) {
		if n, v, ok := strings.Cut(strings.TrimSpace(pair), "="); ok && n == name {
			found = append(found, strings.Trim(v, `"`))
		}
	}
	return found
}

type param struct{ name, value, raw string }

// params are the parameters of a target's query, decoded, and as they stand there.
func params(path []byte) []param {
	_, query, ok := bytes.Cut(path, []byte{'?'})
	if !ok {
		return nil
	}
	query, _, _ = bytes.Cut(query, []byte{'#'})
	var all []param
	for raw := range strings.SplitSeq(string(query), "&") {
		name, value, _ := strings.Cut(raw, "=")
		p := param{name: name, value: value, raw: raw}
		if s, err := url.QueryUnescape(name); err == nil {
			p.name = s
		}
		if s, err := url.QueryUnescape(value); err == nil {
			p.value = s
		}
		all = append(all, p)
	}
	return all
}

// accept verifies all tokens that were found, and returns the first.
func (r *tokenRule) accept(raws []string, now time.Time) (*verifiedToken, error) {
	if len(raws) > maxTokens {
		return nil, jwt.ErrForm
	}
	var first *verifiedToken
	for _, raw := range raws {
		t, err := r.verify(raw, now)
		if err != nil {
			return nil, err
		}
		if first == nil {
			first = t
		}
	}
	return first, nil
}

// verifiedToken is a token whose signature was found to be good.
type verifiedToken struct {
	token  *jwt.Token
	policy *Token
}

func (r *tokenRule) verify(raw string, now time.Time) (*verifiedToken, error) {
	hash := sha256.Sum256([]byte(raw))
	if t := r.verified.get(hash); t != nil {
		return t, t.token.Current(now)
	}
	t, err := jwt.Parse(raw)
	if err != nil {
		return nil, err
	}
	if t.Issuer != r.Issuer {
		return nil, jwt.ErrIssuer
	}
	if err := t.Current(now); err != nil {
		return nil, err
	}
	if !r.meant(t.Audiences) {
		return nil, jwt.ErrAudience
	}
	if r.keys == nil {
		return nil, jwt.ErrKeysNotFetched
	}
	if err := r.keys.Verify(t); err != nil {
		return nil, err
	}
	presenter, _ := t.Claims["azp"].(string)
	v := &verifiedToken{token: t, policy: &Token{Issuer: t.Issuer, Subject: t.Subject, Audiences: t.Audiences, Presenter: presenter, Claims: r.words(t.Claims)}}
	if len(raw) <= maxRemembered {
		r.verified.put(hash, v)
	}
	return v, nil
}

// meant reports whether one of a token's audiences is one of the rule's, written
// with or without scheme and final slash.
func (r *tokenRule) meant(audiences []string) bool {
	for _, want := range r.Audiences {
		for _, have := range audiences {
			if bareAudience(want) == bareAudience(have) {
				return true
			}
		}
	}
	return len(r.Audiences) == 0
}

func bareAudience(s string) string {
	s = strings.TrimPrefix(strings.TrimPrefix(s, "https://"), "http://")
	return strings.TrimSuffix(s, "/")
}

// words makes lists of the claims that are words with spaces between them, and
// leaves those of the token as they are.
func (r *tokenRule) words(claims map[string]any) map[string]any {
	for _, path := range r.spaced {
		claims = split(claims, path)
	}
	return claims
}

func split(claims map[string]any, path []string) map[string]any {
	var changed any
	switch v := claims[path[0]].(type) {
	case string:
		if len(path) > 1 {
			return claims
		}
		list := []any{}
		for word := range strings.FieldsSeq(v) {
			list = append(list, word)
		}
		changed = list
	case map[string]any:
		if len(path) == 1 {
			return claims
		}
		changed = split(v, path[1:])
	default:
		return claims
	}
	out := maps.Clone(claims)
	out[path[0]] = changed
	return out
}

// accepted says what follows from a good token.
func (r *tokenRule) accepted(q *Request, t *verifiedToken) Authenticated {
	a := Authenticated{Token: t.policy}
	if !r.Forward {
		for _, h := range r.Headers {
			if v, ok := q.field(h.Name); ok && (h.Prefix == "" || bytes.Contains(v, []byte(h.Prefix))) {
				a.Remove = append(a.Remove, h.Name)
			}
		}
		a.Path = r.withoutParams(q.Path)
	}
	if r.PayloadHeader != "" {
		a.Set = append(a.Set, Field{r.PayloadHeader, t.token.Payload})
	}
	for _, h := range r.ClaimHeaders {
		if v, ok := claimText(t.token.Claims, h.Claim); ok {
			a.Set = append(a.Set, Field{h.Header, v})
		}
	}
	return a
}

// withoutParams is the target without the parameters that tokens are in; "" if
// there are none.
func (r *tokenRule) withoutParams(path []byte) string {
	var kept []string
	gone := false
	for _, p := range params(path) {
		is := false
		for _, name := range r.Params {
			is = is || p.name == name
		}
		if gone = gone || is; !is {
			kept = append(kept, p.raw)
		}
	}
	if !gone {
		return ""
	}
	before, _, _ := bytes.Cut(path, []byte{'?'})
	if len(kept) == 0 {
		return string(before)
	}
	return string(before) + "?" + strings.Join(kept, "&")
}

// claimText is a claim as a field can carry it: a text, a number or a truth value.
// Its name may be that of a claim, or a path with dots.
func claimText(claims map[string]any, name string) (string, bool) {
	v, ok := claims[name]
	for path := name; !ok; {
		first, rest, more := strings.Cut(path, ".")
		inner, isObject := claims[first].(map[string]any)
		if !more || !isObject {
			return "", false
		}
		claims, path = inner, rest
		v, ok = claims[path]
	}
	switch v := v.(type) {
	case string:
		for _, c := range []byte(v) {
			if c < ' ' && c != '\t' || c == 0x7f {
				return "", false // it would end the field
			}
		}
		return strings.Trim(v, " \t"), true
	case json.Number:
		return v.String(), true
	case bool:
		return strconv.FormatBool(v), true
	}
	return "", false
}

// Remembered is how many tokens are remembered.
func (a *Authentication) Remembered() int {
	n := 0
	for i := range a.rules {
		n += a.rules[i].verified.len()
	}
	return n
}

// maxVerified bounds how many tokens are remembered, for each rule.
const maxVerified = 512

// maxRemembered bounds a token that is remembered, in bytes.
const maxRemembered = 8 << 10

// tokenCache remembers tokens whose signature was good, by their hash. What is
// forgotten is only verified again.
type tokenCache struct {
	mu         sync.Mutex
	young, old map[[sha256.Size]byte]*verifiedToken
}

func newTokenCache() *tokenCache {
	return &tokenCache{young: map[[sha256.Size]byte]*verifiedToken{}}
}

func (c *tokenCache) get(hash [sha256.Size]byte) *verifiedToken {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.young[hash]; t != nil {
		return t
	}
	t := c.old[hash]
	if t != nil {
		c.add(hash, t)
	}
	return t
}

func (c *tokenCache) put(hash [sha256.Size]byte, t *verifiedToken) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(hash, t)
}

func (c *tokenCache) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.young) + len(c.old)
}

// add makes room by forgetting what was not asked for lately. Callers hold mu.
func (c *tokenCache) add(hash [sha256.Size]byte, t *verifiedToken) {
	if len(c.young) >= maxVerified/2 {
		c.old, c.young = c.young, map[[sha256.Size]byte]*verifiedToken{}
	}
	c.young[hash] = t
}
