package inject

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podseal.io/podseal/internal/settings"
)

// labelled returns labels from "name=value" words; "-" is none.
func labelled(words string) map[string]string {
	l := map[string]string{}
	for word := range strings.FieldsSeq(words) {
		if name, value, ok := strings.Cut(word, "="); ok {
			l[map[string]string{"I": "istio-injection", "R": "istio.io/rev", "r": "istio.io/rev", "i": "sidecar.istio.io/inject"}[name]] = value
		}
	}
	return l
}

// TestMatrix goes through contract 5.3 row by row: I and R are labels of the
// namespace, i and r of the pod.
func TestMatrix(t *testing.T) {
	for _, test := range []struct {
		ns, pod string
		want    bool
	}{
		// I=enabled: by the default revision, unless the pod says false
		{"I=enabled", "-", true},
		{"I=enabled", "i=true", true},
		{"I=enabled", "i=other", true},
		{"I=enabled", "r=elsewhere", true},
		{"I=enabled R=elsewhere", "-", true},
		{"I=enabled", "i=false", false},
		{"I=enabled R=default", "i=false r=default", false},
		// I of any other value: never
		{"I=disabled", "-", false},
		{"I=disabled", "i=true", false},
		{"I=disabled R=default", "i=true r=default", false},
		{"I=Enabled", "i=true", false},
		{"I=", "i=true", false},
		// R of the namespace: by that revision; r of the pod doesn't count
		{"R=default", "-", true},
		{"R=v1", "-", true},
		{"R=v1", "i=true r=elsewhere", true},
		{"R=v1", "i=other", true},
		{"R=v1", "i=false", false},
		{"R=elsewhere", "i=true", false},
		{"R=elsewhere", "r=default", false},
		{"R=", "-", false},
		// no label on the namespace: the pod decides
		{"-", "i=true", true},
		{"-", "i=true r=v1", true},
		{"-", "r=v1", true},
		{"-", "r=default", true},
		{"-", "r=elsewhere", false},
		{"-", "i=true r=elsewhere", false},
		{"-", "i=false r=default", false},
		{"-", "i=other", false},
		{"-", "-", false},
	} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: labelled(test.pod)}}
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Labels: labelled(test.ns)}}
		d := Decide(pod, ns, "shop", &settings.Settings{Revisions: []string{"v1"}})
		if d.Inject != test.want || d.Reason == "" {
			t.Errorf("namespace %q, pod %q: %+v, want %v", test.ns, test.pod, d, test.want)
		}
		if odd := strings.Contains(test.pod, "i=other") && test.want; odd != (len(d.Warnings) == 1) {
			t.Errorf("namespace %q, pod %q: warnings %q (contract 5.5)", test.ns, test.pod, d.Warnings)
		}
	}
}

func TestDecideInsideTheWebhook(t *testing.T) {
	enabledNS := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Labels: labelled("I=enabled")}}
	plainNS := &corev1.Namespace{}
	pod := func(labels, annotation string, change ...func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: labelled(labels), Annotations: map[string]string{}}}
		if annotation != "-" {
			p.Annotations["sidecar.istio.io/inject"] = annotation
		}
		for _, c := range change {
			c(p)
		}
		return p
	}
	hostNetwork := func(p *corev1.Pod) { p.Spec.HostNetwork = true }
	windows := func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Windows} }
	mirror := func(p *corev1.Pod) { p.Annotations["kubernetes.io/config.mirror"] = "0123" }
	status := func(p *corev1.Pod) { p.Annotations["sidecar.istio.io/status"] = "{}" }
	proxy := func(p *corev1.Pod) { p.Spec.InitContainers = []corev1.Container{{Name: "istio-proxy"}} }
	for _, test := range []struct {
		name     string
		pod      *corev1.Pod
		ns       *corev1.Namespace
		nsName   string
		want     bool
		warnings int
	}{
		{"annotation true alone never triggers (contract 5.4)", pod("-", "true"), plainNS, "shop", false, 0},
		{"annotation false stops (contract 5.4)", pod("-", "false"), enabledNS, "shop", false, 0},
		{"label true beats annotation false (contract 5.4)", pod("i=true", "false"), enabledNS, "shop", true, 0},
		{"annotation of another value (contract 5.5)", pod("-", "yes"), enabledNS, "shop", true, 1},
		{"hostNetwork (contract 5.5)", pod("-", "-", hostNetwork), enabledNS, "shop", false, 1},
		{"hostNetwork that is meant", pod("i=false", "-", hostNetwork), enabledNS, "shop", false, 0},
		{"hostNetwork that is meant, by annotation", pod("-", "false", hostNetwork), enabledNS, "shop", false, 0},
		{"hostNetwork outside the mesh", pod("-", "-", hostNetwork), plainNS, "shop", false, 0},
		{"hostNetwork wins over the label (contract 5.6)", pod("i=true", "-", hostNetwork), enabledNS, "shop", false, 1},
		{"a static pod", pod("-", "-", mirror), enabledNS, "shop", false, 1},
		{"Windows", pod("i=true", "-", windows), enabledNS, "shop", false, 1},
		{"kube-system (contract 5.5)", pod("i=true", "-"), enabledNS, "kube-system", false, 0},
		{"kube-public (contract 5.5)", pod("i=true", "-"), enabledNS, "kube-public", false, 0},
		{"kube-node-lease (contract 5.5)", pod("i=true", "-"), enabledNS, "kube-node-lease", false, 0},
		{"local-path-storage (contract 5.5)", pod("i=true", "-"), enabledNS, "local-path-storage", false, 0},
		{"the control plane", pod("i=true", "-"), enabledNS, "d8-istio", false, 0},
		{"the manager", pod("i=true", "-"), enabledNS, "podseal-system", false, 0},
		{"injected already (contract 5.8)", pod("-", "-", status, proxy), enabledNS, "shop", false, 0},
		{"the annotation alone keeps nothing out", pod("-", "-", status), enabledNS, "shop", true, 0},
	} {
		d := Decide(test.pod, test.ns, test.nsName, &settings.Settings{})
		if d.Inject != test.want || len(d.Warnings) != test.warnings {
			t.Errorf("%s: %+v", test.name, d)
		}
	}
}
