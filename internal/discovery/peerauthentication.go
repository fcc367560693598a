package discovery

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"podseal.io/podseal/internal/policy"
)

// KindPeerAuthentication is the kind of contract 1.1.
const KindPeerAuthentication = "PeerAuthentication"

// istiosRoot is the root namespace of Istio's own installation (contract 1.5).
const istiosRoot = "istio-system"

// maxMatchLabels is how many labels a selector may have (contract 1.34).
const maxMatchLabels = 4096

// Fault is one thing that is wrong with an object.
type Fault struct {
	Field   string // e.g. spec.portLevelMtls[70000]
	Problem string // what is wrong
	Remedy  string // what to do about it
}

func (f Fault) String() string { return f.Field + ": " + f.Problem + "; " + f.Remedy }

// Describe joins faults into one text.
func Describe(faults []Fault) string {
	texts := make([]string, 0, len(faults))
	for _, f := range faults {
		texts = append(texts, f.String())
	}
	return strings.Join(texts, " · ")
}

// ValidatePeerAuthentication finds all that is wrong with a PeerAuthentication
// (contract 1.30-1.34), and what its author may not expect of it (warnings:
// contract 1.5, 1.9, 1.33, unknown fields). Contract 1.35 is what it lets pass.
func ValidatePeerAuthentication(obj *unstructured.Unstructured, rootNamespace string) (faults []Fault, warnings []string) {
	_, r := readPeerAuthentication(obj)
	if r.bareSelector && len(r.faults) == 0 { // contract 1.33
		warnings = append(warnings, "spec.selector: has no labels, so it selects all pods of the namespace as if it were absent")
	}
	if len(r.labels) > 0 && obj.GetNamespace() == rootNamespace {
		warnings = append(warnings, fmt.Sprintf("spec.selector: a PeerAuthentication with a selector has no effect in the root namespace %s; "+
			"leave the selector out for the whole mesh, or move the object to the namespace of the pods", rootNamespace))
	}
	if ns := obj.GetNamespace(); ns == istiosRoot && ns != rootNamespace && len(r.labels) == 0 {
		warnings = append(warnings, fmt.Sprintf("metadata.namespace: %s is not the root namespace here, so this holds for the pods of %s only; "+
			"put an object for the whole mesh into %s", ns, ns, rootNamespace))
	}
	return r.faults, append(warnings, r.warnings...)
}

// SaysStrict reports whether a PeerAuthentication has mode STRICT anywhere.
func SaysStrict(obj *unstructured.Unstructured) bool {
	p, r := readPeerAuthentication(obj)
	if len(r.faults) > 0 {
		return false
	}
	strict := p.Mode == policy.Strict
	for _, mode := range p.Ports {
		strict = strict || mode == policy.Strict
	}
	return strict
}

// reader collects what is found while an object is read.
type reader struct {
	faults   []Fault
	warnings []string
	labels   map[string]string
	// bareSelector: there is a selector, without labels.
	bareSelector bool
	at           string // of the traffic policy, if it isn't spec.trafficPolicy
}

func (r *reader) fault(field, remedy, problem string, args ...any) {
	r.faults = append(r.faults, Fault{field, fmt.Sprintf(problem, args...), remedy})
}

// readPeerAuthentication reads an object; what it returns is to be used only if
// there are no faults.
func readPeerAuthentication(obj *unstructured.Unstructured) (policy.PeerAuthentication, *reader) {
	r := &reader{}
	p := policy.PeerAuthentication{
		Namespace: obj.GetNamespace(),
		Name:      obj.GetName(),
		Created:   obj.GetCreationTimestamp().Time,
	}
	spec := r.object(obj.Object, "spec", "spec")
	r.onlyFields(spec, "spec", "selector", "mtls", "portLevelMtls")
	selector := r.object(spec, "selector", "spec.selector")
	r.onlyFields(selector, "spec.selector", "matchLabels")
	p.Selector = r.matchLabels(selector)
	r.labels = p.Selector
	_, present := spec["selector"]
	r.bareSelector = present && len(r.labels) == 0
	p.Mode = r.mode(spec, "mtls", "spec.mtls")
	p.Ports = r.ports(spec, len(p.Selector) > 0)
	return p, r
}

// object returns a field that must be an object; absent and null are empty.
func (r *reader) object(of map[string]any, name, path string) map[string]any {
	v, ok := of[name]
	if !ok || v == nil {
		return nil
	}
	m, ok := v.(map[string]any)
	if !ok {
		r.fault(path, "write it as a mapping", "must be an object, not %T", v)
	}
	return m
}

func (r *reader) onlyFields(of map[string]any, path string, known ...string) {
	for _, name := range slices.Sorted(maps.Keys(of)) {
		if !slices.Contains(known, name) {
			r.warnings = append(r.warnings, fmt.Sprintf("%s.%s: unknown field, it has no effect (known are %s)", path, name, strings.Join(known, ", ")))
		}
	}
}

func (r *reader) matchLabels(selector map[string]any) map[string]string {
	return r.labelsAt(selector, "spec.selector.matchLabels")
}

// labelsAt reads the labels of a selector.
func (r *reader) labelsAt(selector map[string]any, path string) map[string]string {
	raw := r.object(selector, "matchLabels", path)
	if len(raw) > maxMatchLabels { // contract 1.34
		r.fault(path, "select by fewer labels", "has %d labels, at most %d are allowed", len(raw), maxMatchLabels)
		return nil
	}
	labels := make(map[string]string, len(raw))
	for _, k := range slices.Sorted(maps.Keys(raw)) {
		at := fmt.Sprintf("%s[%q]", path, k)
		v, ok := raw[k].(string)
		switch {
		case !ok:
			r.fault(at, "put the value in quotes", "the value must be a string, not %T", raw[k])
		case k == "": // contract 1.33
			r.fault(at, "name the label to compare", "the key is empty")
		case strings.Contains(k, "*"), strings.Contains(v, "*"): // contract 1.33
			r.fault(at, "write whole keys and values: a selector compares for equality", "wildcards are not allowed")
		case len(v) > maxLabelValue: // contract 1.34
			r.fault(at, "no pod can have such a label: shorten it", "the value is %d characters long, at most %d are allowed", len(v), maxLabelValue)
		}
		labels[k] = v
	}
	return labels
}

// mode reads {mode: …} under of[name].
func (r *reader) mode(of map[string]any, name, path string) policy.Mode {
	m := r.object(of, name, path)
	r.onlyFields(m, path, "mode")
	v, ok := m["mode"]
	if !ok || v == nil {
		return policy.Unset
	}
	const remedy = "write one of UNSET, DISABLE, PERMISSIVE, STRICT"
	text, ok := v.(string)
	if !ok {
		r.fault(path+".mode", remedy, "must be a word, not %T", v)
		return policy.Unset
	}
	mode, err := policy.ParseMode(text)
	if err != nil {
		r.fault(path+".mode", remedy, "%q is not a mode", text)
	}
	return mode
}

func (r *reader) ports(spec map[string]any, selective bool) map[uint16]policy.Mode {
	const path = "spec.portLevelMtls"
	if v, present := spec["portLevelMtls"]; !present || v == nil {
		return nil
	}
	raw := r.object(spec, "portLevelMtls", path)
	if raw == nil {
		return nil
	}
	if len(raw) == 0 { // contract 1.31
		r.fault(path, "name a port, or leave the field out", "is present but empty")
		return nil
	}
	if !selective { // contract 1.30
		r.fault(path, "add spec.selector.matchLabels that select the pods with these ports, or leave portLevelMtls out",
			"ports can be set only for selected workloads, and there is no selector with labels")
	}
	ports := make(map[uint16]policy.Mode, len(raw))
	for _, k := range slices.Sorted(maps.Keys(raw)) {
		at := fmt.Sprintf("%s[%s]", path, k)
		n, err := strconv.ParseInt(k, 10, 64)
		if err != nil || n < 1 || n > 65535 { // contract 1.32
			r.fault(at, "use the number of the pod's own port, from 1 to 65535", "%q is not a port number", k)
			continue
		}
		ports[uint16(n)] = r.mode(raw, k, at)
	}
	return ports
}
