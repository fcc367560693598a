package discovery

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"istio.io/api/annotation"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"podseal.io/podseal/internal/policy"
)

// KindAuthorizationPolicy is the kind of contract 1.4.
const KindAuthorizationPolicy = "AuthorizationPolicy"

// Bounds of contract 6.22 and 6.46.
const (
	maxRules           = 512
	maxFrom            = 512
	maxServiceAccounts = 16
	maxTargetRefs      = 16
)

// experimentalKey begins keys of `when` that name what only Envoy's filters know.
const experimentalKey = "experimental.envoy.filters."

// field is one of a source or operation; each has a not-variant too (contract 6.14).
type field struct {
	name string
	on   policy.Attribute
}

var (
	sourceFields = []field{
		{"principals", policy.SourcePrincipal},
		{"requestPrincipals", policy.RequestPrincipal},
		{"namespaces", policy.SourceNamespace},
		{"serviceAccounts", policy.SourceServiceAccount},
		{"trustDomains", policy.SourceTrustDomain},
		{"ipBlocks", policy.SourceIP},
		{"remoteIpBlocks", policy.RemoteIP},
	}
	operationFields = []field{
		{"hosts", policy.RequestHost}, {"ports", policy.DestinationPort}, {"methods", policy.RequestMethod}, {"paths", policy.RequestPath},
	}
)

// not is the name of the field's not-variant.
func (f field) not() string { return "not" + strings.ToUpper(f.name[:1]) + f.name[1:] }

// remedies say what a value of an attribute looks like.
var remedies = map[policy.Attribute]string{
	policy.SourceIP:             "write an address like 10.0.0.1, or a range like 10.0.0.0/8",
	policy.RemoteIP:             "write an address like 10.0.0.1, or a range like 10.0.0.0/8",
	policy.DestinationIP:        "write an address like 10.0.0.1, or a range like 10.0.0.0/8",
	policy.DestinationPort:      "write the number of the pod's own port, in quotes",
	policy.RequestPath:          "write a path, with * at one end, or a template with whole segments {*} and one {**}",
	policy.SourceServiceAccount: "write <name> or <namespace>/<name>",
	policy.SourceTrustDomain:    "write a trust domain, with at most one *",
}

func remedyFor(on policy.Attribute) string {
	if text, ok := remedies[on]; ok {
		return text
	}
	return "write a value, with * at one end, or leave the entry out"
}

// authorizationReader reads one AuthorizationPolicy.
type authorizationReader struct {
	reader
	policy policy.AuthorizationPolicy
	// unusable: of whom it is or what it does can't be known.
	unusable bool
	targeted bool // has targetRef or targetRefs (contract 6.2)
	custom   bool
	dropped  bool // a condition of the rule that is being read can't be compared
}

// ValidateAuthorizationPolicy finds all that is wrong with an AuthorizationPolicy
// (contract 6.45, 6.46), and what its author may not expect of it. authorizers are
// those of the mesh.
func ValidateAuthorizationPolicy(obj *unstructured.Unstructured, rootNamespace string, authorizers ...policy.Authorizer) (faults []Fault, warnings []string) {
	r := readAuthorizationPolicy(obj)
	if len(r.faults) == 0 {
		warnings = r.surprises(rootNamespace)
		if r.custom && !r.targeted {
			if text := custom(&r.policy, authorizers); text != "" {
				warnings = append(warnings, "spec.provider.name: "+text)
			}
		}
	}
	return r.faults, append(warnings, r.warnings...)
}

// readAuthorizationPolicy reads an object. If there are faults, what can't be
// understood has been left out of the rules so that they allow less and deny
// more (contract 6.16).
func readAuthorizationPolicy(obj *unstructured.Unstructured) *authorizationReader {
	r := &authorizationReader{policy: policy.AuthorizationPolicy{Namespace: obj.GetNamespace(), Name: obj.GetName()}}
	spec := r.object(obj.Object, "spec", "spec")
	r.onlyFields(spec, "spec", "selector", "targetRef", "targetRefs", "action", "provider", "rules")
	r.target(spec)
	action, _ := spec["action"].(string)
	effect, err := policy.ParseEffect(action)
	if _, isText := spec["action"].(string); err != nil || (!isText && spec["action"] != nil) {
		r.fault("spec.action", "write one of ALLOW, DENY, AUDIT, CUSTOM", "%v is not an action", spec["action"])
	}
	r.policy.Effect, r.custom = effect, effect == policy.Custom
	r.unusable = len(r.faults) > 0
	r.provider(spec)
	r.rules(spec)
	r.dryRun(obj)
	return r
}

// target reads whom the policy is for.
func (r *authorizationReader) target(spec map[string]any) {
	selector := r.object(spec, "selector", "spec.selector")
	r.onlyFields(selector, "spec.selector", "matchLabels")
	r.policy.Selector = r.matchLabels(selector)
	_, present := spec["selector"]
	r.labels, r.bareSelector = r.policy.Selector, present && len(r.policy.Selector) == 0
	var named []string
	for _, name := range []string{"selector", "targetRef", "targetRefs"} {
		if spec[name] != nil {
			named = append(named, name)
		}
	}
	if len(named) > 1 {
		r.fault("spec."+named[1], "keep one of them", "only one of %s can be set", strings.Join(named, " and "))
	}
	if ref := r.object(spec, "targetRef", "spec.targetRef"); ref != nil {
		r.targetRef(ref, "spec.targetRef")
	}
	refs := r.list(spec, "targetRefs", "spec.targetRefs")
	if len(refs) > maxTargetRefs {
		r.fault("spec.targetRefs", "make several objects", "has %d entries, at most %d are allowed", len(refs), maxTargetRefs)
	}
	for i, raw := range refs {
		path := fmt.Sprintf("spec.targetRefs[%d]", i)
		ref, ok := raw.(map[string]any)
		if !ok {
			r.fault(path, "write it as a mapping", "must be an object, not %T", raw)
			continue
		}
		r.targetRef(ref, path)
	}
}

// targetRef allows the kinds of contract 6.46, of the policy's own namespace.
func (r *authorizationReader) targetRef(ref map[string]any, path string) {
	r.targeted = true
	r.onlyFields(ref, path, "group", "kind", "name", "namespace")
	text := func(name string) string { s, _ := ref[name].(string); return s }
	kinds := []string{"gateway.networking.k8s.io/Gateway", "gateway.networking.k8s.io/GatewayClass", "/Service", "networking.istio.io/ServiceEntry"}
	group := strings.TrimPrefix(text("group"), "core")
	if kind := group + "/" + text("kind"); !slices.Contains(kinds, kind) {
		r.fault(path+".kind", "name a Gateway, GatewayClass, Service or ServiceEntry; for pods use spec.selector", "%q can't be a target", strings.TrimPrefix(kind, "/"))
	}
	if text("name") == "" {
		r.fault(path+".name", "name the target", "is empty")
	}
	if ns := text("namespace"); ns != "" && ns != r.policy.Namespace {
		r.fault(path+".namespace", "move the policy to the target's namespace", "a target in another namespace is not allowed")
	}
}

func (r *authorizationReader) provider(spec map[string]any) {
	provider := r.object(spec, "provider", "spec.provider")
	r.onlyFields(provider, "spec.provider", "name")
	name, _ := provider["name"].(string)
	switch {
	case r.custom && name == "":
		r.fault("spec.provider.name", "name the provider to ask", "action CUSTOM has no provider")
	case !r.custom && spec["provider"] != nil:
		r.fault("spec.provider", "leave it out, or use action CUSTOM", "only action CUSTOM has a provider")
	}
	r.policy.Authorizer = name
}

func (r *authorizationReader) rules(spec map[string]any) {
	rules := r.list(spec, "rules", "spec.rules")
	if rules == nil && (r.policy.Effect == policy.Deny || r.custom) {
		r.fault("spec.rules", "write at least one rule; {} matches everything", "action %v without rules would match nothing", r.policy.Effect)
	}
	if len(rules) > maxRules {
		r.fault("spec.rules", "make several objects", "has %d entries, at most %d are allowed", len(rules), maxRules)
	}
	for i, raw := range rules {
		before := len(r.faults)
		r.dropped = false
		rule := r.rule(raw, fmt.Sprintf("spec.rules[%d]", i))
		rule.Never = (r.dropped || len(r.faults) > before) && r.policy.Effect == policy.Allow // contract 6.16
		r.policy.Rules = append(r.policy.Rules, rule)
	}
}

func (r *authorizationReader) rule(raw any, path string) policy.Rule {
	obj, ok := raw.(map[string]any)
	if !ok {
		r.fault(path, "write {} for a rule that matches everything, or leave the entry out", "must be an object")
		return policy.Rule{}
	}
	r.onlyFields(obj, path, "from", "to", "when")
	from := r.list(obj, "from", path+".from")
	if len(from) > maxFrom {
		r.fault(path+".from", "write several rules", "has %d entries, at most %d are allowed", len(from), maxFrom)
	}
	return policy.Rule{
		From: r.parts(obj, path, "from", "source", sourceFields),
		To:   r.parts(obj, path, "to", "operation", operationFields),
		When: r.conditions(obj, path),
	}
}

// parts reads `from` or `to`.
func (r *authorizationReader) parts(rule map[string]any, path, name, inner string, known []field) [][]policy.Match {
	path += "." + name
	entries := r.list(rule, name, path)
	if entries != nil && len(entries) == 0 {
		r.fault(path, "write an entry, or leave the field out", "is present but empty")
	}
	var out [][]policy.Match
	for i, raw := range entries {
		at := fmt.Sprintf("%s[%d]", path, i)
		entry, ok := raw.(map[string]any)
		if !ok {
			r.fault(at, "write a "+inner+", or leave the entry out", "must be an object")
			continue
		}
		r.onlyFields(entry, at, inner)
		at += "." + inner
		part := r.object(entry, inner, at)
		names := make([]string, 0, 2*len(known))
		for _, f := range known {
			names = append(names, f.name, f.not())
		}
		r.onlyFields(part, at, names...)
		if !slices.ContainsFunc(names, func(name string) bool { v, _ := part[name].([]any); return len(v) > 0 }) {
			r.fault(at, "write a field of it, or leave the entry out", "is empty")
			continue
		}
		if inner == "source" {
			r.serviceAccounts(part, at)
		}
		var all []policy.Match
		for _, f := range known {
			m := policy.Match{On: f.on, Values: r.values(part, f.name, at, f.on), NotValues: r.values(part, f.not(), at, f.on)}
			if len(m.Values)+len(m.NotValues) > 0 {
				all = append(all, m)
			}
		}
		out = append(out, all)
	}
	return out
}

// serviceAccounts is what contract 6.22 says of them besides their form.
func (r *authorizationReader) serviceAccounts(source map[string]any, path string) {
	for _, f := range []string{"serviceAccounts", "notServiceAccounts"} {
		accounts, _ := source[f].([]any)
		if len(accounts) > maxServiceAccounts {
			r.fault(path+"."+f, "write several sources", "has %d entries, at most %d are allowed", len(accounts), maxServiceAccounts)
		}
		for _, other := range []string{"principals", "notPrincipals", "namespaces", "notNamespaces"} {
			if o, _ := source[other].([]any); len(accounts) > 0 && len(o) > 0 {
				r.fault(path+"."+f, "write principals instead", "can't stand beside %s", other)
			}
		}
	}
}

// values reads a list of values. If one of them is wrong none is compared, so
// that what is denied becomes more and not less.
func (r *authorizationReader) values(of map[string]any, name, path string, on policy.Attribute) []string {
	path += "." + name
	var out []string
	whole := true
	raw := r.list(of, name, path)
	for i, v := range raw {
		at := path + "[" + strconv.Itoa(i) + "]"
		text, ok := v.(string)
		if !ok {
			r.fault(at, "put the value in quotes", "must be a string, not %T", v)
			whole = false
			continue
		}
		if err := policy.CheckValue(on, text); err != nil {
			r.fault(at, remedyFor(on), "%v", err)
			whole = false
		}
		out = append(out, text)
	}
	if len(raw) > 0 && r.custom && on.OfIdentity() { // contract 6.45
		r.fault(path, "use ipBlocks, hosts, paths, methods, ports or request.headers", "a rule of action CUSTOM can't look at it")
	}
	if !whole {
		return nil
	}
	return out
}

func (r *authorizationReader) conditions(rule map[string]any, path string) []policy.Match {
	path += ".when"
	entries := r.list(rule, "when", path)
	if entries != nil && len(entries) == 0 {
		r.fault(path, "write an entry, or leave the field out", "is present but empty")
	}
	var out []policy.Match
	for i, raw := range entries {
		at := fmt.Sprintf("%s[%d]", path, i)
		entry, ok := raw.(map[string]any)
		if !ok {
			r.fault(at, "write a key with values, or leave the entry out", "must be an object")
			continue
		}
		r.onlyFields(entry, at, "key", "values", "notValues")
		if m, ok := r.condition(entry, at); ok {
			out = append(out, m)
		}
	}
	return out
}

func (r *authorizationReader) condition(entry map[string]any, at string) (policy.Match, bool) {
	key, _ := entry["key"].(string)
	if rest, ok := strings.CutPrefix(key, experimentalKey); ok && strings.HasSuffix(rest, "]") && strings.Index(rest, "[") > 0 {
		r.dropped = true
		instead := "passed over, so that the rule matches more"
		if r.policy.Effect == policy.Allow {
			instead = "not met, so that the rule allows nothing"
		}
		r.warnings = append(r.warnings, fmt.Sprintf("%s.key: Podseal has no filters of Envoy, so %s can't be compared; the condition is taken as %s", at, key, instead))
		return policy.Match{}, false
	}
	m, err := policy.ParseCondition(key)
	if err != nil {
		r.fault(at+".key", "use a key of https://istio.io/latest/docs/reference/config/security/conditions/", "%v", err)
		return policy.Match{}, false
	}
	values, notValues := r.list(entry, "values", at+".values"), r.list(entry, "notValues", at+".notValues")
	if len(values)+len(notValues) == 0 {
		r.fault(at, "write values or notValues", "has neither")
		return policy.Match{}, false
	}
	m.Values, m.NotValues = r.values(entry, "values", at, m.On), r.values(entry, "notValues", at, m.On)
	return m, len(m.Values)+len(m.NotValues) > 0
}

// dryRun reads the annotation; what can't be read is no dry run (contract 6.42).
func (r *authorizationReader) dryRun(obj *unstructured.Unstructured) {
	name := annotation.IoIstioDryRun.Name
	text, present := obj.GetAnnotations()[name]
	if !present {
		return
	}
	dry, err := strconv.ParseBool(text)
	switch {
	case err != nil:
		r.warnings = append(r.warnings, fmt.Sprintf("metadata.annotations[%s]: %q is neither true nor false, so the policy is in force", name, text))
	case dry && (r.policy.Effect == policy.Audit || r.custom): // contract 6.43
		r.warnings = append(r.warnings, fmt.Sprintf("metadata.annotations[%s]: has no effect on action %v", name, r.policy.Effect))
	}
	r.policy.DryRun = dry && err == nil
}

// surprises is what a valid policy does that its author may not expect.
func (r *authorizationReader) surprises(rootNamespace string) []string {
	var out []string
	p := &r.policy
	if r.targeted { // contract 6.2
		return []string{"spec.targetRef: is for gateways and waypoints, which Podseal has none of: the policy has no effect; select pods by spec.selector"}
	}
	if r.bareSelector {
		out = append(out, "spec.selector: has no labels, so it selects all pods of the namespace as if it were absent")
	}
	if p.Namespace == istiosRoot && p.Namespace != rootNamespace {
		out = append(out, fmt.Sprintf("metadata.namespace: %s is not the root namespace here, so this holds for the pods of %s only; "+
			"put an object for the whole mesh into %s", p.Namespace, p.Namespace, rootNamespace))
	}
	for i := range p.Rules {
		if text := httpSurprise(p, i); text != "" {
			out = append(out, text)
		}
	}
	return out
}

// httpSurprise says what becomes of a rule where there is no HTTP to read
// (contract 6.33, 6.34).
func httpSurprise(p *policy.AuthorizationPolicy, i int) string {
	rule := &p.Rules[i]
	if rule.Never || !rule.NeedsHTTP() {
		return ""
	}
	where := "on TCP ports"
	if p.Effect == policy.Allow {
		return fmt.Sprintf("spec.rules[%d]: looks at HTTP: %s it allows nothing", i, where)
	}
	verb := map[policy.Effect]string{policy.Deny: "denies", policy.Audit: "notes", policy.Custom: "denies"}[p.Effect]
	text := fmt.Sprintf("spec.rules[%d]: looks at HTTP: %s only the rest of it is compared", i, where)
	if rest := rest(rule); rest == "" {
		text += fmt.Sprintf(", which is nothing: there it %s every connection", verb)
	} else {
		text += fmt.Sprintf(" (%s): there it %s whatever matches that", rest, verb)
	}
	if !namesPorts(rule) {
		text += "; name the HTTP ports in to.operation.ports"
	}
	return text
}

// rest names what of a rule isn't HTTP's.
func rest(rule *policy.Rule) string {
	names := map[string]bool{}
	for m := range rule.Matches() {
		if !m.On.HTTPOnly() {
			names[m.On.String()] = true
		}
	}
	return strings.Join(slices.Sorted(maps.Keys(names)), ", ")
}

// namesPorts reports whether the rule is for some ports only.
func namesPorts(rule *policy.Rule) bool {
	for m := range rule.Matches() {
		if m.On == policy.DestinationPort && len(m.Values) > 0 {
			return true
		}
	}
	return false
}

// list returns a field that must be a list; absent and null are nil.
func (r *reader) list(of map[string]any, name, path string) []any {
	v, ok := of[name]
	if !ok || v == nil {
		return nil
	}
	l, ok := v.([]any)
	if !ok {
		r.fault(path, "write it as a list", "must be a list, not %T", v)
	}
	return l
}
