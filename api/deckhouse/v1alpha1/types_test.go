package v1alpha1

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

// document is the ModuleConfig that the encrypting-pods document applies, with
// all other fields filled in.
const document = `apiVersion: deckhouse.io/v1alpha1
kind: ModuleConfig
metadata:
  annotations:
    podseal.io/trust-domain: prod.example
  name: istio
spec:
  enabled: true
  maintenance: NoResourceReconciliation
  settings:
    ca:
      cert: PEM
  source: deckhouse
  updatePolicy: deckhouse-updater
  version: 2
status:
  message: ""
  version: ""
`

func read(t *testing.T) *ModuleConfig {
	t.Helper()
	m := new(ModuleConfig)
	if err := yaml.UnmarshalStrict([]byte(document), m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestModuleConfigRoundTrip(t *testing.T) {
	out, err := yaml.Marshal(read(t))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(document, string(out)); diff != "" {
		t.Error(diff)
	}
}

func TestDeepCopySharesNothing(t *testing.T) {
	list := &ModuleConfigList{Items: []ModuleConfig{*read(t)}}
	c, ok := list.DeepCopyObject().(*ModuleConfigList)
	if !ok {
		t.Fatal("the copy has another type")
	}
	if diff := cmp.Diff(list, c); diff != "" {
		t.Fatal(diff)
	}
	item := &c.Items[0]
	*item.Spec.Enabled = false
	item.Spec.Settings.Raw[0] = 'x'
	item.Annotations["podseal.io/trust-domain"] = "changed"
	if diff := cmp.Diff(&list.Items[0], read(t)); diff != "" {
		t.Error("changing the copy changed the original:", diff)
	}
	if (*ModuleConfig)(nil).DeepCopyObject() != nil || (*ModuleConfigList)(nil).DeepCopyObject() != nil {
		t.Error("the copy of nil is not nil")
	}
}

func TestAddToScheme(t *testing.T) {
	s := runtime.NewScheme()
	if err := AddToScheme(s); err != nil {
		t.Fatal(err)
	}
	for _, o := range []runtime.Object{&ModuleConfig{}, &ModuleConfigList{}} {
		kinds, _, err := s.ObjectKinds(o)
		if err != nil || len(kinds) == 0 || kinds[0].GroupVersion() != GroupVersion() {
			t.Errorf("%T: %v, %v", o, kinds, err)
		}
	}
}
