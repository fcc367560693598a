package inject

import (
	"encoding/json"
	"maps"
	"path"
	"slices"
	"strings"

	"istio.io/api/annotation"
	corev1 "k8s.io/api/core/v1"
)

// autoImage stands for the image of the installation in a container that
// customizes the proxy.
const autoImage = "auto"

// overrides is the annotation proxy.istio.io/overrides: what the pod brought to
// customize the proxy, as the API server completes it (contract 5.8).
type overrides struct {
	Containers     []corev1.Container `json:"containers,omitempty"`
	InitContainers []corev1.Container `json:"initContainers,omitempty"`
}

func (o overrides) all() []corev1.Container { return slices.Concat(o.InitContainers, o.Containers) }

// takeCustom returns the pod without the containers that customize the proxy, and
// these. The pod that is given isn't changed.
func takeCustom(pod *corev1.Pod) (*corev1.Pod, overrides) {
	isProxy := func(c corev1.Container) bool { return c.Name == ProxyContainer }
	isNot := func(c corev1.Container) bool { return !isProxy(c) }
	pod = pod.DeepCopy()
	custom := overrides{
		Containers:     slices.DeleteFunc(slices.Clone(pod.Spec.Containers), isNot),
		InitContainers: slices.DeleteFunc(slices.Clone(pod.Spec.InitContainers), isNot),
	}
	pod.Spec.Containers = slices.DeleteFunc(pod.Spec.Containers, isProxy)
	pod.Spec.InitContainers = slices.DeleteFunc(pod.Spec.InitContainers, isProxy)
	for _, list := range [][]corev1.Container{custom.Containers, custom.InitContainers} {
		for i := range list {
			complete(&list[i])
		}
	}
	return pod, custom
}

// refuseCustom refuses to customize what capture, identity and the proxy's rights
// rest on.
func (in *injection) refuseCustom() {
	all := in.custom.all()
	if len(all) == 0 {
		return
	}
	if len(in.Pod.Spec.Containers) == 0 {
		in.fault("container %q: the pod has no other; a proxy that stands alone, such as a gateway, is not available", ProxyContainer)
	}
	if len(all) > 1 {
		in.fault("container %q: the pod brings it %d times; once is enough to customize the proxy", ProxyContainer, len(all))
	}
	for i := range all {
		c := all[i].DeepCopy()
		for _, e := range c.Env {
			if isFixedEnv(e.Name) || isCaptureEnv(e.Name) {
				in.fault("container %q: env: %s is for injection alone to set; remove it", ProxyContainer, e.Name)
			}
		}
		for _, m := range c.VolumeMounts {
			if slices.ContainsFunc(volumes(), func(v corev1.Volume) bool { return v.Name == m.Name }) || covers(m.MountPath) {
				in.fault("container %q: volumeMounts: %s at %s is the proxy's own; remove it", ProxyContainer, m.Name, m.MountPath)
			}
		}
		c.Name, c.Image, c.ImagePullPolicy, c.Resources, c.Env, c.VolumeMounts = "", "", "", corev1.ResourceRequirements{}, nil, nil
		c.Lifecycle, c.StartupProbe, c.ReadinessProbe, c.LivenessProbe = nil, nil, nil, nil
		c.TerminationMessagePath, c.TerminationMessagePolicy = "", ""
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			c.RestartPolicy = nil // what a native sidecar has anyway
		}
		for _, field := range fieldsOf(c) {
			in.fault("container %q: %s of the proxy can't be customized; remove it", ProxyContainer, field)
		}
	}
}

// covers reports whether something mounted there would lie over what the proxy
// reads, such as the root and the token, or under it.
func covers(at string) bool {
	at = strings.TrimRight(path.Clean(at), "/") + "/"
	return slices.ContainsFunc(mounts(), func(m corev1.VolumeMount) bool {
		own := m.MountPath + "/"
		return strings.HasPrefix(own, at) || strings.HasPrefix(at, own)
	})
}

// fieldsOf names the fields that a container has, apart from its name.
func fieldsOf(c *corev1.Container) []string {
	b, err := json.Marshal(c)
	if err != nil {
		return []string{err.Error()}
	}
	var fields map[string]any
	if err := json.Unmarshal(b, &fields); err != nil {
		return []string{err.Error()}
	}
	delete(fields, "name")
	maps.DeleteFunc(fields, func(_ string, v any) bool { m, isMap := v.(map[string]any); return isMap && len(m) == 0 })
	return slices.Sorted(maps.Keys(fields))
}

// customize lets what the pod says of the proxy win over what injection would
// (contract 5.8).
func (in *injection) customize(proxy *corev1.Container) {
	for _, c := range in.custom.all() {
		if c.Image != "" && c.Image != autoImage {
			proxy.Image = c.Image
			if c.ImagePullPolicy != "" { // for "auto" it is what the API server made of that name
				proxy.ImagePullPolicy = c.ImagePullPolicy
			}
		}
		for _, r := range []struct{ to, from *corev1.ResourceList }{
			{&proxy.Resources.Requests, &c.Resources.Requests}, {&proxy.Resources.Limits, &c.Resources.Limits},
		} {
			if *r.to == nil && len(*r.from) > 0 {
				*r.to = corev1.ResourceList{}
			}
			maps.Copy(*r.to, *r.from)
		}
		proxy.Resources.Claims = append(proxy.Resources.Claims, c.Resources.Claims...)
		for _, e := range c.Env {
			proxy.Env = append(slices.DeleteFunc(proxy.Env, func(x corev1.EnvVar) bool { return x.Name == e.Name }), e)
		}
		proxy.VolumeMounts = append(proxy.VolumeMounts, c.VolumeMounts...)
		for _, p := range []struct{ to, from **corev1.Probe }{
			{&proxy.StartupProbe, &c.StartupProbe}, {&proxy.ReadinessProbe, &c.ReadinessProbe}, {&proxy.LivenessProbe, &c.LivenessProbe},
		} {
			if *p.from != nil {
				*p.to = *p.from
			}
		}
		if l := c.Lifecycle; l != nil {
			if proxy.Lifecycle == nil {
				proxy.Lifecycle = &corev1.Lifecycle{}
			}
			if l.PreStop != nil {
				proxy.Lifecycle.PreStop = l.PreStop
			}
			if l.PostStart != nil {
				proxy.Lifecycle.PostStart = l.PostStart
			}
		}
		proxy.TerminationMessagePath, proxy.TerminationMessagePolicy = c.TerminationMessagePath, c.TerminationMessagePolicy
	}
}

// noteCustom records what the pod brought.
func (in *injection) noteCustom() error {
	if len(in.custom.all()) == 0 {
		return nil
	}
	b, err := json.Marshal(in.custom)
	if err != nil {
		return err
	}
	in.pod.Annotations[annotation.ProxyOverrides.Name] = string(b)
	return nil
}
