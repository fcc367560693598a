package inject

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"podseal.io/podseal/internal/settings"
)

// maxLists bounds how deep lists may stand in lists.
const maxLists = 8

// Installation is what Manifests must know of the cluster that the manifests are
// for.
type Installation struct {
	Settings settings.Settings
	Params   Params
	// DefaultNamespace is that of objects which name none.
	DefaultNamespace string
	// Namespace returns a namespace for what its labels say about Pod Security, or
	// nil if nothing is known of it. It may be nil.
	Namespace func(name string) (*corev1.Namespace, error)
}

// Manifests is what became of manifests.
type Manifests struct {
	YAML     []byte
	Warnings []string // "<object>: <text>", of the pods that have a proxy now
	Left     []string // "<object>: <reason>", of the pods that have none
}

// manifests is one pass over manifests.
type manifests struct {
	Installation
	namespaces map[string]*corev1.Namespace // that stand in the manifests themselves
	out        Manifests
	faults     []error
}

// ReadManifests puts the proxy into every pod of the manifests (YAML or JSON, any
// number of documents): pods, templates of pods in the objects of controllers, and
// those in lists. It is asked for by name, so the label of the namespace that turns
// injection on doesn't matter; what keeps a single pod out does. The pods that a
// controller makes are then as the webhook would have made them, which leaves them
// as they are. Documents without a pod come back as they were, with comments.
//
// The error joins everything that is wrong; nothing is returned beside it.
func ReadManifests(in []byte, to Installation) (Manifests, error) {
	docs, err := splitDocuments(in)
	if err != nil {
		return Manifests{}, err
	}
	m := &manifests{Installation: to, namespaces: map[string]*corev1.Namespace{}}
	objects := make([]map[string]any, len(docs))
	for i, doc := range docs {
		if objects[i], err = decodeDocument(doc); err != nil {
			m.faults = append(m.faults, fmt.Errorf("document %d: %w", i+1, err))
			continue
		}
		m.note(objects[i])
	}
	for i, doc := range docs {
		changed, err := m.object(objects[i], 0)
		if err != nil {
			m.faults = append(m.faults, err)
		}
		if changed {
			if doc, err = yaml.Marshal(objects[i]); err != nil {
				return Manifests{}, fmt.Errorf("document %d: write it: %w", i+1, err)
			}
		}
		if i > 0 {
			m.out.YAML = append(m.out.YAML, "---\n"...)
		}
		m.out.YAML = append(m.out.YAML, doc...)
	}
	if len(m.faults) > 0 {
		return Manifests{}, errors.Join(m.faults...)
	}
	return m.out, nil
}

// splitDocuments cuts YAML into documents, each ending with a line break.
func splitDocuments(in []byte) ([][]byte, error) {
	r := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(in)))
	var docs [][]byte
	for {
		doc, err := r.Read()
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read the manifests: %w", err)
		}
		doc = bytes.TrimPrefix(doc, []byte("---\n"))
		docs = append(docs, append(bytes.TrimRight(doc, "\n"), '\n'))
	}
}

// decodeDocument returns nil for a document of nothing but comments.
func decodeDocument(doc []byte) (map[string]any, error) {
	text, err := yaml.YAMLToJSON(doc)
	if err != nil {
		return nil, fmt.Errorf("not YAML: %w", err)
	}
	var v any
	if err := utiljson.Unmarshal(text, &v); err != nil {
		return nil, fmt.Errorf("not an object: %w", err)
	}
	switch v := v.(type) {
	case nil:
		return nil, nil //nolint:nilnil // nothing but comments, which is not wrong
	case map[string]any:
		return v, nil
	default:
		return nil, fmt.Errorf("a %T is no object of Kubernetes", v)
	}
}

// note takes note of namespaces that the manifests make.
func (m *manifests) note(obj map[string]any) {
	var ns corev1.Namespace
	if obj["kind"] == "Namespace" && obj["apiVersion"] == "v1" && convert(obj, &ns) == nil {
		m.namespaces[ns.Name] = &ns
	}
}

// object injects one object in place and reports whether it changed anything.
func (m *manifests) object(obj map[string]any, depth int) (bool, error) {
	kind, _ := obj["kind"].(string)
	if items, ok := obj["items"].([]any); ok && strings.HasSuffix(kind, "List") {
		if depth == maxLists {
			return false, fmt.Errorf("%s: lists stand in lists more than %d deep", kind, maxLists)
		}
		changed, faults := false, []error(nil)
		for i, item := range items {
			inner, ok := item.(map[string]any)
			if !ok {
				faults = append(faults, fmt.Errorf("%s: items[%d]: not an object", kind, i))
				continue
			}
			did, err := m.object(inner, depth+1)
			changed = changed || did
			faults = append(faults, err)
		}
		return changed, errors.Join(faults...)
	}
	template := templateOf(obj)
	if template == nil {
		return false, nil
	}
	var about struct {
		metav1.TypeMeta `json:",inline"`
		Metadata        metav1.ObjectMeta `json:"metadata"`
	}
	if err := convert(obj, &about); err != nil {
		return false, fmt.Errorf("%s %v: %w", kind, nameIn(obj), err)
	}
	if about.Metadata.Namespace == "" {
		about.Metadata.Namespace = m.DefaultNamespace
	}
	name := strings.ToLower(kind) + " " + about.Metadata.Namespace + "/" + about.Metadata.Name + about.Metadata.GenerateName
	changed, err := m.template(template, name, about.TypeMeta, &about.Metadata)
	if err != nil {
		var faults []error
		for line := range strings.Lines(err.Error()) {
			faults = append(faults, fmt.Errorf("%s: %s", name, strings.TrimSpace(line)))
		}
		return false, errors.Join(faults...)
	}
	return changed, nil
}

// nameIn is an object's name, of one that is otherwise wrong.
func nameIn(obj map[string]any) any {
	metadata, _ := obj["metadata"].(map[string]any)
	return metadata["name"]
}

// template injects one pod, or template of pods, of the object that is described.
func (m *manifests) template(template map[string]any, name string, kind metav1.TypeMeta, of *metav1.ObjectMeta) (bool, error) {
	var before corev1.PodTemplateSpec
	if err := convert(template, &before); err != nil {
		return false, err
	}
	ns, err := m.namespace(of.Namespace)
	if err != nil {
		return false, err
	}
	req := Request{
		Pod: &corev1.Pod{ObjectMeta: before.ObjectMeta, Spec: before.Spec}, Namespace: ns, NamespaceName: of.Namespace,
		Settings: m.Settings, Params: m.Params,
	}
	if kind.Kind != "Pod" {
		req.owner = &workload{of.Name, kind.Kind, kind.APIVersion}
		if kind.Kind == "Job" {
			*req.owner = ofJob(*req.owner)
		}
	}
	out, warnings, err := Pod(req)
	if err != nil {
		return false, err
	}
	for _, w := range warnings {
		m.out.Warnings = append(m.out.Warnings, name+": "+w)
	}
	if out == nil {
		reason := Decide(req.Pod, ns, of.Namespace, &m.Settings).Reason
		m.out.Left = append(m.out.Left, name+": "+reason)
		return false, nil
	}
	var was, is map[string]any
	if err := errors.Join(convert(before, &was), convert(corev1.PodTemplateSpec{ObjectMeta: out.ObjectMeta, Spec: out.Spec}, &is)); err != nil {
		return false, err
	}
	graft(template, was, is)
	return true, nil
}

// namespace is the one of this name as if its label asked for injection.
func (m *manifests) namespace(name string) (*corev1.Namespace, error) {
	ns := m.namespaces[name]
	if ns == nil && m.Namespace != nil {
		var err error
		if ns, err = m.Namespace(name); err != nil {
			return nil, fmt.Errorf("read namespace %s: %w", name, err)
		}
	}
	if ns == nil {
		ns = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	}
	ns = ns.DeepCopy()
	if ns.Labels == nil {
		ns.Labels = map[string]string{}
	}
	ns.Labels[NamespaceLabel] = enabled
	return ns, nil
}

// templateOf is the part of an object that describes pods, nil if there is none.
// Kinds that are not known have it where those of Kubernetes do.
func templateOf(obj map[string]any) map[string]any {
	if obj["kind"] == "Pod" && obj["apiVersion"] == "v1" {
		return obj
	}
	path := []string{"spec", "template"}
	switch obj["kind"] {
	case "CronJob":
		path = []string{"spec", "jobTemplate", "spec", "template"}
	case "PodTemplate":
		path = []string{"template"}
	}
	for _, key := range path {
		obj, _ = obj[key].(map[string]any)
	}
	spec, _ := obj["spec"].(map[string]any)
	if _, ok := spec["containers"].([]any); !ok {
		return nil
	}
	return obj
}

// convert turns a value into another by way of JSON.
func convert(from, to any) error {
	b, err := json.Marshal(from)
	if err != nil {
		return err
	}
	return utiljson.Unmarshal(b, to)
}

// graft makes of raw, which the user wrote, what is, leaving all that was the
// same before: fields that this program doesn't know, and spellings.
func graft(raw, was, is map[string]any) {
	for key := range was {
		if _, still := is[key]; !still {
			delete(raw, key)
		}
	}
	for key, value := range is {
		old, had := was[key]
		if had && reflect.DeepEqual(old, value) {
			continue
		}
		raw[key] = grafted(raw[key], old, value)
	}
}

func grafted(raw, was, is any) any {
	switch is := is.(type) {
	case map[string]any:
		r, ok1 := raw.(map[string]any)
		w, ok2 := was.(map[string]any)
		if ok1 && ok2 {
			graft(r, w, is)
			return r
		}
	case []any:
		r, _ := raw.([]any)
		w, _ := was.([]any)
		list := make([]any, len(is))
		for i, item := range is {
			if list[i] = item; named(r, item) != nil {
				list[i] = grafted(named(r, item), named(w, item), item)
			}
		}
		return list
	}
	return is
}

// named is the element of a list that has the name of another.
func named(list []any, like any) any {
	l, _ := like.(map[string]any)
	for _, item := range list {
		if m, ok := item.(map[string]any); ok && m["name"] != nil && m["name"] == l["name"] {
			return item
		}
	}
	return nil
}
