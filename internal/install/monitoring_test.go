package install

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Alerts and dashboard are there for who asks for them, and look at metrics that
// are there.
func TestMonitoring(t *testing.T) {
	find := func(sets ...string) map[string]*unstructured.Unstructured {
		found := map[string]*unstructured.Unstructured{}
		for _, u := range render(t, PartManager, sets...) {
			if u.GetKind() == "PrometheusRule" || u.GetKind() == "ConfigMap" {
				found[u.GetKind()] = u
			}
		}
		return found
	}
	if found := find(); len(found) != 0 {
		t.Errorf("without being asked for: %v", found)
	}
	found := find("monitoring.prometheusRule=true", "monitoring.dashboard=true", "monitoring.labels.release=prometheus")
	rule, dashboard := found["PrometheusRule"], found["ConfigMap"]
	if rule == nil || dashboard == nil || rule.GetLabels()["release"] != "prometheus" || dashboard.GetLabels()["grafana_dashboard"] != "1" {
		t.Fatalf("%+v", found)
	}
	groups, _, err := unstructured.NestedSlice(rule.Object, "spec", "groups")
	if err != nil || len(groups) != 1 {
		t.Fatal(groups, err)
	}
	text, _, err := unstructured.NestedString(dashboard.Object, "data", "podseal.json")
	if err != nil {
		t.Fatal(err)
	}
	var parsed struct {
		Panels []struct {
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(text), &parsed); err != nil || len(parsed.Panels) < 9 {
		t.Fatalf("%d panels, %v", len(parsed.Panels), err)
	}
	rules, err := json.Marshal(groups)
	if err != nil {
		t.Fatal(err)
	}
	source := sources(t, "../controlplane", "../metrics")
	for _, name := range regexp.MustCompile(`\b(podseal|citadel|pilot|istio)_[a-z_]+`).FindAllString(string(rules)+text, -1) {
		if !strings.Contains(source, `"`+name+`"`) {
			t.Errorf("nothing has the metric %s", name)
		}
	}
	if strings.Contains(string(rules), "{{ \"") || !strings.Contains(string(rules), "{{ $value") {
		t.Errorf("templates of alerts are not as Prometheus reads them: %s", rules)
	}
}

func sources(t *testing.T, folders ...string) string {
	t.Helper()
	var b strings.Builder
	for _, folder := range folders {
		files, err := filepath.Glob(filepath.Join(folder, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			b.Write(text)
		}
	}
	return b.String()
}
