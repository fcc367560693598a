package v1alpha1

import "k8s.io/apimachinery/pkg/runtime"

// DeepCopyInto copies m into out; the two share nothing afterwards.
func (m *ModuleConfig) DeepCopyInto(out *ModuleConfig) {
	*out = *m
	m.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	m.Spec.DeepCopyInto(&out.Spec)
}

// DeepCopy returns a copy of m that shares nothing with it; nil for nil.
func (m *ModuleConfig) DeepCopy() *ModuleConfig {
	if m == nil {
		return nil
	}
	out := new(ModuleConfig)
	m.DeepCopyInto(out)
	return out
}

// DeepCopyObject is DeepCopy for runtime.Object.
func (m *ModuleConfig) DeepCopyObject() runtime.Object {
	if m == nil {
		return nil
	}
	return m.DeepCopy()
}

// DeepCopyInto copies s into out; the two share nothing afterwards.
func (s *ModuleConfigSpec) DeepCopyInto(out *ModuleConfigSpec) {
	*out = *s
	if s.Enabled != nil {
		enabled := *s.Enabled
		out.Enabled = &enabled
	}
	out.Settings = s.Settings.DeepCopy()
}

// DeepCopyInto copies l into out; the two share nothing afterwards.
func (l *ModuleConfigList) DeepCopyInto(out *ModuleConfigList) {
	*out = *l
	l.ListMeta.DeepCopyInto(&out.ListMeta)
	if l.Items == nil {
		return
	}
	out.Items = make([]ModuleConfig, len(l.Items))
	for i := range l.Items {
		l.Items[i].DeepCopyInto(&out.Items[i])
	}
}

// DeepCopy returns a copy of l that shares nothing with it; nil for nil.
func (l *ModuleConfigList) DeepCopy() *ModuleConfigList {
	if l == nil {
		return nil
	}
	out := new(ModuleConfigList)
	l.DeepCopyInto(out)
	return out
}

// DeepCopyObject is DeepCopy for runtime.Object.
func (l *ModuleConfigList) DeepCopyObject() runtime.Object {
	if l == nil {
		return nil
	}
	return l.DeepCopy()
}
