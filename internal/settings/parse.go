package settings

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"podseal.io/podseal/api/deckhouse/v1alpha1"
)

// Schema versions of spec.settings that are read. Version 1 has auth.password;
// up to version 2 enableHTTP10 and proxyConfig stand at the top, since version
// 3 under dataPlane.
const (
	OldestVersion = 1
	LatestVersion = 3
)

// Annotations of the ModuleConfig that carry what Deckhouse's own schema has
// no setting for (and would refuse).
const (
	AnnotationPrefix             = "podseal.io/"
	AnnotationTrustDomain        = AnnotationPrefix + "trust-domain"
	AnnotationTrustDomainAliases = AnnotationPrefix + "trust-domain-aliases" // comma-separated
	AnnotationAutoUpgrade        = AnnotationPrefix + "auto-upgrade"         // true or false
)

// Cluster is what Parse must know of the cluster.
type Cluster struct {
	Domain string // e.g. cluster.local; "" means DefaultClusterDomain
}

// Parse reads a ModuleConfig into settings that are safe to use: converted
// from the schema version that they are written in, with defaults, validated.
//
// The error joins all faults at once, one per line, each with the path of the
// field, its value and what would be right; parts of the CA are never shown.
// The warnings name known settings that have no effect yet. On error the
// Settings are the defaults and must not replace good ones.
func Parse(in *v1alpha1.ModuleConfig, cluster Cluster) (Settings, []string, error) {
	p := &parser{out: Default(cluster.Domain), version: in.Spec.Version}
	if !isDomain(p.out.ClusterDomain) {
		p.fault("cluster domain", p.out.ClusterDomain, "write a DNS name such as cluster.local")
	}
	p.annotations(in.Annotations)
	p.spec(&in.Spec)
	p.checkLimits("sidecar.resourcesManagement", p.out.Sidecar.RequestCPU, p.out.Sidecar.LimitCPU, p.out.Sidecar.RequestMemory, p.out.Sidecar.LimitMemory)
	cp := p.out.ControlPlane
	p.checkLimits("controlPlane.resourcesManagement", cp.RequestCPU, cp.LimitCPU, cp.RequestMemory, cp.LimitMemory)
	for name, err := range p.out.CA.check() {
		p.faults = append(p.faults, fault{"settings.ca." + name, err.Error()})
	}
	slices.SortStableFunc(p.faults, func(a, b fault) int { return cmp.Compare(a.path, b.path) })
	slices.Sort(p.warnings)
	if len(p.faults) == 0 {
		return p.out, p.warnings, nil
	}
	errs := make([]error, len(p.faults))
	for i, f := range p.faults {
		errs[i] = f
	}
	return Default(cluster.Domain), p.warnings, errors.Join(errs...)
}

// fault is one wrong thing and where it is.
type fault struct{ path, text string }

func (f fault) Error() string { return f.path + ": " + f.text }

// parser collects the settings and all that is wrong with them.
type parser struct {
	version  int
	out      Settings
	faults   []fault
	warnings []string
}

// fault notes that value at path is wrong. want says what would be right.
func (p *parser) fault(path string, value any, want string) {
	p.faults = append(p.faults, fault{path, show(value) + ": " + want})
}

func (p *parser) warn(path, text string) {
	p.warnings = append(p.warnings, path+": "+text)
}

func (p *parser) spec(spec *v1alpha1.ModuleConfigSpec) {
	if m := spec.Maintenance; m != "" && m != v1alpha1.NoResourceReconciliation {
		p.fault("maintenance", m, "write "+v1alpha1.NoResourceReconciliation+", or leave it out")
	}
	known := p.version >= OldestVersion && p.version <= LatestVersion
	if p.version != 0 && !known {
		p.fault("version", p.version, fmt.Sprintf("versions %d to %d can be read", OldestVersion, LatestVersion))
	}
	if spec.Settings == nil || len(bytes.TrimSpace(spec.Settings.Raw)) == 0 {
		return
	}
	var settings any
	d := json.NewDecoder(bytes.NewReader(spec.Settings.Raw))
	d.UseNumber()
	err := d.Decode(&settings)
	if _, more := d.Token(); err != nil || !errors.Is(more, io.EOF) {
		p.faults = append(p.faults, fault{"settings", "not JSON"}) // without the text: it may hold a key
		return
	}
	object, ok := settings.(map[string]any)
	switch {
	case settings == nil:
		return
	case !ok:
		p.faults = append(p.faults, fault{"settings", "not an object"})
		return
	case p.version == 0:
		p.faults = append(p.faults, fault{"version", fmt.Sprintf("missing: settings need the version of the schema that they are written in, at best %d", LatestVersion)})
		p.version = LatestVersion
	case !known:
		return // there is no schema to hold them against
	}
	p.object("settings", "", object, p.schema())
}

// schema is the table of settings as this version has it, by path.
func (p *parser) schema() map[string]field {
	schema := map[string]field{}
	for _, f := range fields() {
		if path := f.pathIn(p.version); path != "" {
			schema[path] = f
		}
	}
	return schema
}

// object reads all keys of an object. where is its path for people, path its
// path in the schema ("" at the top).
func (p *parser) object(where, path string, object map[string]any, schema map[string]field) {
	for _, key := range slices.Sorted(maps.Keys(object)) {
		value, sub, full := object[key], key, at(where, key)
		if path != "" {
			sub = path + "." + key
		}
		if strings.Contains(key, ".") {
			p.faults = append(p.faults, fault{full, "unknown setting; a path is written as objects inside objects, not with dots"})
			continue
		}
		if f, ok := schema[sub]; ok {
			if value != nil {
				f.read(p, full, value)
			}
			continue
		}
		if !isParent(sub, schema) {
			p.faults = append(p.faults, fault{full, "unknown setting" + p.hint(sub, schema)})
			continue
		}
		switch inner := value.(type) {
		case nil:
		case map[string]any:
			p.object(full, sub, inner, schema)
		default:
			p.faults = append(p.faults, fault{full, "not an object"}) // without the value: it may be a key
		}
	}
}

// at is the path of a key; odd keys are quoted, so that a fault stays one line.
func at(path, key string) string {
	const longest = 80
	if len(key) > longest || strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r == '"' || r > '~' }) {
		return path + "." + show(key)
	}
	return path + "." + key
}

func isParent(path string, schema map[string]field) bool {
	for known := range schema {
		if strings.HasPrefix(known, path+".") {
			return true
		}
	}
	return false
}

// hint is what the user may have meant by an unknown path, to be put behind
// the fault; "" if nothing is near.
func (p *parser) hint(path string, schema map[string]field) string {
	if path == "tlsMode" {
		return ": it is gone; whether mutual TLS is required is now said by PeerAuthentication objects (spec.mtls.mode)"
	}
	for _, f := range fields() {
		for v := OldestVersion; v <= LatestVersion; v++ {
			old, now := f.pathIn(v), f.pathIn(p.version)
			if old == "" || (old != path && !strings.HasPrefix(old, path+".")) {
				continue
			}
			if now == "" {
				return fmt.Sprintf(" in version %d: it ended with version %d", p.version, f.until)
			}
			return fmt.Sprintf(" in version %d: there it is %s", p.version, strings.TrimSuffix(now, old[len(path):]))
		}
	}
	names := map[string]bool{}
	for known := range schema {
		for i, r := range known {
			if r == '.' {
				names[known[:i]] = true
			}
		}
		names[known] = true
	}
	if best := nearest(path, slices.Sorted(maps.Keys(names))); best != "" {
		return "; did you mean " + best + "?"
	}
	return ""
}

// annotations reads the settings that stand outside of spec.settings.
func (p *parser) annotations(annotations map[string]string) {
	if td, ok := annotations[AnnotationTrustDomain]; ok {
		if !isTrustDomain(td) {
			p.fault("annotation "+AnnotationTrustDomain, td, trustDomainWant)
		}
		p.out.TrustDomain = td
	}
	if list, ok := annotations[AnnotationTrustDomainAliases]; ok {
		for alias := range strings.SplitSeq(list, ",") {
			alias = strings.TrimSpace(alias)
			if !isTrustDomain(alias) {
				p.fault("annotation "+AnnotationTrustDomainAliases, alias, trustDomainWant)
			}
			p.out.TrustDomainAliases = append(p.out.TrustDomainAliases, alias)
		}
	}
	switch value := annotations[AnnotationAutoUpgrade]; value {
	case "", "false":
	case "true":
		p.out.AutoUpgrade = true
	default:
		p.fault("annotation "+AnnotationAutoUpgrade, value, "write \"true\" or \"false\"")
	}
	known := []string{AnnotationTrustDomain, AnnotationTrustDomainAliases, AnnotationAutoUpgrade}
	for name := range annotations {
		if strings.HasPrefix(name, AnnotationPrefix) && !slices.Contains(known, name) {
			text := "unknown, has no effect"
			if best := nearest(name, known); best != "" {
				text += "; did you mean " + best + "?"
			}
			p.warn("annotation "+name, text)
		}
	}
}
