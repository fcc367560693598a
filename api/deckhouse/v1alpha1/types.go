package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Names of the ModuleConfig resource.
const (
	Group             = "deckhouse.io"
	Version           = "v1alpha1"
	ModuleConfigKind  = "ModuleConfig"
	ModuleConfigs     = "moduleconfigs" // the plural, in URLs and RBAC rules
	ModuleConfigShort = "mc"
)

// NoResourceReconciliation is the value of spec.maintenance under which the
// objects of a module are left as they are.
const NoResourceReconciliation = "NoResourceReconciliation"

// ModuleConfig switches the module that bears its name and carries the
// settings of that module.
type ModuleConfig struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Spec   ModuleConfigSpec   `json:"spec"`
	Status ModuleConfigStatus `json:"status"`
}

// ModuleConfigSpec is what the user wants.
type ModuleConfigSpec struct {
	// Enabled nil leaves the decision to the default of the module.
	Enabled *bool `json:"enabled,omitempty"`
	// Version is the schema version of Settings. Settings need one.
	Version int `json:"version,omitempty"`
	// Settings is a JSON object whose schema depends on the module and Version.
	Settings *runtime.RawExtension `json:"settings,omitempty"`
	// Maintenance is "" or NoResourceReconciliation.
	Maintenance string `json:"maintenance,omitempty"`
	// UpdatePolicy and Source are Deckhouse's own business: kept, not read.
	UpdatePolicy string `json:"updatePolicy,omitempty"`
	Source       string `json:"source,omitempty"`
}

// ModuleConfigStatus is what became of it.
type ModuleConfigStatus struct {
	// Version is the schema version of the settings in use.
	Version string `json:"version"`
	// Message is for people: faults of the settings, one per line, or warnings.
	Message string `json:"message"`
}

// ModuleConfigList is a list of ModuleConfig.
type ModuleConfigList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`

	Items []ModuleConfig `json:"items"`
}

// GroupVersion returns deckhouse.io/v1alpha1.
func GroupVersion() schema.GroupVersion {
	return schema.GroupVersion{Group: Group, Version: Version}
}

// AddToScheme makes the types of this package known to a scheme.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion(), &ModuleConfig{}, &ModuleConfigList{})
	metav1.AddToGroupVersion(s, GroupVersion())
	return nil
}
