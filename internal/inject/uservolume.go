package inject

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"istio.io/api/annotation"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// userVolumes are what the annotations userVolume and userVolumeMount add to the
// pod and to the proxy (contract 5.23). Each is JSON: an object by name, or a list
// of objects that have their name.
//
//	sidecar.istio.io/userVolume: '{"certs": {"secret": {"secretName": "certs"}}}'
//	sidecar.istio.io/userVolumeMount: '[{"name": "certs", "mountPath": "/etc/certs", "readOnly": true}]'
type userVolumes struct {
	volumes []corev1.Volume
	mounts  []corev1.VolumeMount
}

func (r reader) userVolumes(pod *corev1.Pod) {
	name := annotation.SidecarUserVolume.Name
	for i, text := range r.named(name) {
		var v corev1.Volume
		if err := decodeStrictly(text, &v); err != nil {
			r.fault("annotation %s: entry %d: %w", name, i+1, err)
			continue
		}
		taken := func(o corev1.Volume) bool { return o.Name == v.Name }
		switch {
		case len(validation.IsDNS1123Label(v.Name)) > 0:
			r.fault("annotation %s: %q is no name for a volume", name, v.Name)
		case slices.ContainsFunc(slices.Concat(volumes(), pod.Spec.Volumes, r.user.volumes), taken):
			r.fault("annotation %s: there is a volume %q already; give this one another name", name, v.Name)
		default:
			r.user.volumes = append(r.user.volumes, v)
		}
	}
	name = annotation.SidecarUserVolumeMount.Name
	for i, text := range r.named(name) {
		var m corev1.VolumeMount
		if err := decodeStrictly(text, &m); err != nil {
			r.fault("annotation %s: entry %d: %w", name, i+1, err)
			continue
		}
		named := func(o corev1.Volume) bool { return o.Name == m.Name }
		switch {
		case m.MountPath == "" || m.MountPath[0] != '/':
			r.fault("annotation %s: %q: write a mountPath that begins with /", name, m.Name)
		case covers(m.MountPath) || slices.ContainsFunc(volumes(), named):
			r.fault("annotation %s: %s at %s is the proxy's own; use another", name, m.Name, m.MountPath)
		case !slices.ContainsFunc(slices.Concat(pod.Spec.Volumes, r.user.volumes), named):
			r.fault("annotation %s: the pod has no volume %q; annotation %s can add one", name, m.Name, annotation.SidecarUserVolume.Name)
		default:
			r.user.mounts = append(r.user.mounts, m)
		}
	}
}

// named are the entries of an annotation, each with its name in it.
func (r reader) named(annotation string) []json.RawMessage {
	text, set := r.annotations[annotation]
	if !set {
		return nil
	}
	var list []json.RawMessage
	if json.Unmarshal([]byte(text), &list) == nil {
		return list
	}
	var byName map[string]map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &byName); err != nil {
		r.fault("annotation %s: write a JSON object by name, or a list of objects with a name", annotation)
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		entry := maps.Clone(byName[name])
		if entry == nil {
			entry = map[string]json.RawMessage{}
		}
		quoted, err := json.Marshal(name)
		if err == nil {
			entry["name"] = quoted
			quoted, err = json.Marshal(entry)
		}
		if err != nil {
			r.fault("annotation %s: %q: %w", annotation, name, err)
			continue
		}
		list = append(list, quoted)
	}
	return list
}

func decodeStrictly(text []byte, to any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(to); err != nil {
		return fmt.Errorf("not what Kubernetes knows: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one object")
	}
	return nil
}
