package policy

import (
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// naive decides as the contract's sentences read, one after the other, without
// any compiling: what Access is compared with.
type naive struct {
	policies     []*AuthorizationPolicy
	trustDomains []string
}

// judge returns the outcome with the dry-run policies left out, or taken in.
func (n naive) judge(t *Attempt, dryRuns bool) bool {
	restricted, allowed := false, false
	for _, p := range n.policies {
		if p.DryRun && !dryRuns && (p.Effect == Allow || p.Effect == Deny) { // contract 6.42, 6.43
			continue
		}
		switch p.Effect {
		case Deny, Custom: // contract 6.4, 6.44
			if n.anyRule(p, t) {
				return false
			}
		case Allow: // contract 6.5
			restricted = true
			allowed = allowed || n.anyRule(p, t)
		case Audit:
		}
	}
	return !restricted || allowed
}

func (n naive) audited(t *Attempt) bool {
	for _, p := range n.policies {
		if p.Effect == Audit && n.anyRule(p, t) {
			return true
		}
	}
	return false
}

func (n naive) anyRule(p *AuthorizationPolicy, t *Attempt) bool {
	for i := range p.Rules {
		if n.rule(p, &p.Rules[i], t) {
			return true
		}
	}
	return false
}

func (n naive) rule(p *AuthorizationPolicy, r *Rule, t *Attempt) bool {
	if r.Never {
		return false
	}
	if t.Request == nil && p.Effect == Allow { // contract 6.33
		for _, part := range append(append([][]Match{r.When}, r.From...), r.To...) {
			for _, m := range part {
				if m.On >= RequestHost {
					return false
				}
			}
		}
	}
	some := func(parts [][]Match) bool { // contract 6.12
		ok := len(parts) == 0
		for _, part := range parts {
			ok = ok || n.every(p, part, t)
		}
		return ok
	}
	return some(r.From) && some(r.To) && n.every(p, r.When, t)
}

func (n naive) every(p *AuthorizationPolicy, matches []Match, t *Attempt) bool {
	for _, m := range matches {
		if t.Request == nil && m.On >= RequestHost { // contract 6.34
			continue
		}
		hit := func(values []string) bool { // contract 6.13
			for _, v := range values {
				if n.value(p, m, v, t) {
					return true
				}
			}
			return false
		}
		if len(m.Values) > 0 && !hit(m.Values) || len(m.NotValues) > 0 && hit(m.NotValues) {
			return false
		}
	}
	return true
}

// like is contract 6.17.
func like(pattern, v string) bool {
	switch {
	case pattern == "*":
		return true
	case pattern != "" && pattern[0] == '*':
		return strings.HasSuffix(v, pattern[1:])
	case strings.HasSuffix(pattern, "*"):
		return strings.HasPrefix(v, strings.TrimSuffix(pattern, "*"))
	}
	return pattern == v
}

func stars(pattern, v string) bool {
	return regexp.MustCompile("(?s)^" + strings.ReplaceAll(regexp.QuoteMeta(pattern), `\*`, ".*") + "$").MatchString(v)
}

func (n naive) value(p *AuthorizationPolicy, m Match, v string, t *Attempt) bool {
	id := strings.Split(string(t.Peer.text), "/") // td ns <ns> sa <sa>
	proved := len(id) == 5
	switch m.On {
	case SourcePrincipal:
		return proved && n.principal(v, string(t.Peer.text))
	case SourceNamespace:
		return proved && stars(v, id[2])
	case SourceServiceAccount:
		if !strings.Contains(v, "/") {
			v = p.Namespace + "/" + v
		}
		return proved && v == id[2]+"/"+id[4]
	case SourceTrustDomain:
		return proved && (stars(v, id[0]) || slices.Contains(n.trustDomains, v) && slices.Contains(n.trustDomains, id[0]))
	case SourceIP:
		return within(v, t.Source)
	case RemoteIP:
		return within(v, n.remote(t))
	case DestinationIP:
		return within(v, t.Destination.Addr())
	case DestinationPort:
		return v == strconv.Itoa(int(t.Destination.Port()))
	case ConnectionSNI:
		return len(t.SNI) > 0 && like(v, string(t.SNI))
	default:
	}
	return n.inRequest(m, v, t.Request)
}

func (n naive) inRequest(m Match, v string, r *Request) bool {
	switch m.On {
	case RequestHost:
		return like(strings.ToLower(v), strings.ToLower(string(r.Host)))
	case RequestMethod:
		return like(v, string(r.Method))
	case RequestPath:
		path, _, _ := strings.Cut(string(r.Path), "?")
		if !strings.Contains(v, "{") {
			return like(v, path)
		}
		expr := strings.ReplaceAll(regexp.QuoteMeta(v), regexp.QuoteMeta("{**}"), ".*")
		return regexp.MustCompile("(?s)^" + strings.ReplaceAll(expr, regexp.QuoteMeta("{*}"), "[^/]+") + "$").MatchString(path)
	case RequestHeader:
		got, ok := r.Header.Field(m.Key[0])
		return ok && like(v, string(got))
	default:
	}
	if r.Token == nil {
		return false
	}
	switch m.On {
	case RequestPrincipal:
		return like(v, r.Token.Issuer+"/"+r.Token.Subject)
	case RequestAudiences:
		for _, a := range r.Token.Audiences {
			if like(v, a) {
				return true
			}
		}
	case RequestPresenter:
		return like(v, r.Token.Presenter)
	case RequestClaim:
		return claimLike(v, r.Token.Claims, m.Key)
	default:
	}
	return false
}

// claimLike is contract 6.15: a claim is text or a list of texts, at any depth.
func claimLike(v string, claims any, path []string) bool {
	if len(path) > 0 {
		object, _ := claims.(map[string]any)
		inner, ok := object[path[0]]
		return ok && claimLike(v, inner, path[1:])
	}
	list, isList := claims.([]any)
	if !isList {
		list = []any{claims}
	}
	for _, one := range list {
		if s, ok := one.(string); ok && like(v, s) {
			return true
		}
	}
	return false
}

// principal is contract 6.30 and 6.18.
func (n naive) principal(pattern, v string) bool {
	if like(pattern, v) && !strings.HasPrefix(pattern, clusterLocal+"/") {
		return true
	}
	parts, have := strings.SplitN(pattern, "/", 2), strings.SplitN(v, "/", 2)
	if strings.Count(pattern, "/") != 4 || parts[0] == "*" {
		return like(pattern, v)
	}
	stands := parts[0] == clusterLocal
	for _, td := range n.trustDomains {
		stands = stands || like(parts[0], td)
	}
	if !stands {
		return false
	}
	return slices.Contains(n.trustDomains, have[0]) && like(parts[1], have[1])
}

func (n naive) remote(t *Attempt) netip.Addr {
	if t.Request == nil {
		return t.Source
	}
	xff, _ := t.Request.Header.Field("x-forwarded-for")
	all := strings.Split(string(xff), ",")
	if a, err := netip.ParseAddr(strings.TrimSpace(all[len(all)-1])); err == nil {
		return a
	}
	return t.Source
}

func within(block string, a netip.Addr) bool {
	if !strings.Contains(block, "/") {
		return netip.MustParseAddr(block) == a
	}
	return netip.MustParsePrefix(block).Contains(a)
}
