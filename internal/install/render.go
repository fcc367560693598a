package install

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/strvals"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	podsealchart "podseal.io/podseal/deploy/podseal"
	"podseal.io/podseal/internal/version"
)

// Part says which objects of the chart to render.
type Part string

// The parts: what `podseal install` applies, and what the manager applies
// while the module is enabled.
const (
	PartManager      Part = "manager"
	PartControlPlane Part = "controlplane"
)

// partOf is the value of the label app.kubernetes.io/part-of by which our
// objects are told from those of others.
const (
	partOfLabel = "app.kubernetes.io/part-of"
	partOf      = "podseal"
)

// Values are chart values: a JSON object, keys as in the chart's values.yaml.
type Values map[string]any

// ParseValues reads a YAML file of values and then each key=value (as helm's
// --set takes them: a.b=c, list={x,y}); the later wins.
func ParseValues(file []byte, sets []string) (Values, error) {
	v := Values{}
	if err := yaml.Unmarshal(file, &v); err != nil {
		return nil, fmt.Errorf("read values: %w", err)
	}
	if v == nil {
		v = Values{}
	}
	for _, set := range sets {
		if !strings.Contains(set, "=") {
			return nil, fmt.Errorf("value %q: write KEY=VALUE, e.g. image.hub=registry.example.com/podseal", set)
		}
		if err := strvals.ParseInto(set, v); err != nil {
			return nil, fmt.Errorf("value %q: %w", set, err)
		}
	}
	return v, nil
}

// Render returns the objects of one part in the order in which they are to be
// applied. It is a pure function of the chart in this binary and the values;
// it never contacts a cluster. Values that the chart's schema refuses are an
// error that names all of them.
func Render(values Values, part Part) ([]*unstructured.Unstructured, error) {
	rendered, err := renderTemplates(values, part)
	if err != nil {
		return nil, err
	}
	var objects []*unstructured.Unstructured
	for _, name := range slices.Sorted(maps.Keys(rendered)) {
		if !strings.HasSuffix(name, ".yaml") {
			continue
		}
		found, err := decode(rendered[name])
		if err != nil {
			return nil, fmt.Errorf("render %s: %w", name, err)
		}
		objects = append(objects, found...)
	}
	slices.SortStableFunc(objects, func(a, b *unstructured.Unstructured) int {
		return cmp.Or(
			cmp.Compare(rank(a), rank(b)),
			cmp.Compare(a.GetNamespace(), b.GetNamespace()),
			cmp.Compare(a.GetName(), b.GetName()))
	})
	return objects, nil
}

func renderTemplates(values Values, part Part) (map[string]string, error) {
	c, err := load()
	if err != nil {
		return nil, fmt.Errorf("load the chart: %w", err)
	}
	merged := chartutil.CoalesceTables(map[string]any{
		"part": string(part),
	}, chartutil.Values(values).AsMap())
	if tag, _ := nested(merged, "image", "tag").(string); tag == "" {
		merged = chartutil.MergeTables(map[string]any{"image": map[string]any{"tag": version.Version}}, merged)
	}
	all, err := chartutil.ToRenderValues(c, merged, chartutil.ReleaseOptions{
		Name:      "podseal",
		Namespace: "podseal-system",
		IsInstall: true,
	}, nil)
	if err != nil {
		return nil, fmt.Errorf("values: %s", strings.TrimSpace(strings.ReplaceAll(err.Error(), "values don't meet the specifications of the schema(s) in the following chart(s):\n", "")))
	}
	if release, ok := all["Release"].(map[string]any); ok {
		release["Service"] = "podseal"
	}
	rendered, err := engine.Render(c, all)
	if err != nil {
		return nil, fmt.Errorf("render the chart: %w", err)
	}
	return rendered, nil
}

func nested(m map[string]any, path ...string) any {
	v, _, _ := unstructured.NestedFieldNoCopy(m, path...)
	return v
}

// load reads the embedded chart.
func load() (*chart.Chart, error) {
	var files []*loader.BufferedFile
	err := fs.WalkDir(podsealchart.Files, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := podsealchart.Files.ReadFile(path)
		files = append(files, &loader.BufferedFile{Name: path, Data: data})
		return err
	})
	if err != nil {
		return nil, err
	}
	return loader.LoadFiles(files)
}

// decode reads the YAML documents of one file; empty ones are left out.
func decode(text string) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	docs := utilyaml.NewYAMLReader(bufio.NewReader(strings.NewReader(text)))
	for {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, err
		}
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(doc, &u.Object); err != nil {
			return nil, err
		}
		if len(u.Object) == 0 {
			continue
		}
		if u.GetKind() == "" || u.GetName() == "" {
			return nil, fmt.Errorf("an object without kind or name: %.80q", doc)
		}
		objects = append(objects, u)
	}
}

// order is the order of application; what is not listed comes last. The
// webhooks stand right behind the namespace: from then on a pod of the mesh
// gets a proxy or waits.
var order = [...]string{
	"Namespace",
	"MutatingWebhookConfiguration",
	"ValidatingWebhookConfiguration",
	"CustomResourceDefinition",
	"ServiceAccount",
	"ClusterRole",
	"ClusterRoleBinding",
	"Role",
	"RoleBinding",
	"Secret",
	"Service",
	"PodDisruptionBudget",
	"Deployment",
	"DaemonSet",
}

func rank(u *unstructured.Unstructured) int {
	if i := slices.Index(order[:], u.GetKind()); i >= 0 {
		return i
	}
	return len(order)
}

// deletionOrder is the reverse of the order of application, but for the
// webhooks, which go first.
func deletionOrder(objects []*unstructured.Unstructured) []*unstructured.Unstructured {
	reversed := slices.Clone(objects)
	slices.Reverse(reversed)
	slices.SortStableFunc(reversed, func(a, b *unstructured.Unstructured) int {
		return cmp.Compare(boolInt(!isWebhook(a)), boolInt(!isWebhook(b)))
	})
	return reversed
}

func isWebhook(u *unstructured.Unstructured) bool {
	return strings.HasSuffix(u.GetKind(), "WebhookConfiguration")
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// AppendYAML appends the objects as YAML documents.
func AppendYAML(b []byte, objects []*unstructured.Unstructured) ([]byte, error) {
	for _, u := range objects {
		doc, err := yaml.Marshal(u.Object)
		if err != nil {
			return nil, fmt.Errorf("write %s as YAML: %w", describe(u), err)
		}
		b = append(append(b, "---\n"...), doc...)
	}
	return b, nil
}

// describe names an object for people: Deployment d8-istio/istiod.
func describe(u *unstructured.Unstructured) string {
	name := u.GetName()
	if ns := u.GetNamespace(); ns != "" {
		name = ns + "/" + name
	}
	return u.GetKind() + " " + name
}

func isOurs(u *unstructured.Unstructured) bool { return u.GetLabels()[partOfLabel] == partOf }
