package install

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
)

// TestTroubleText: the words of the kubelet, short, and the same for the two
// states that it changes between.
func TestTroubleText(t *testing.T) {
	const cause = `failed to pull and unpack image "podseal.io/podseal:x": failed to resolve reference "podseal.io/podseal:x": failed to do request: Head "https://podseal.io/v2/podseal/manifests/x": dial tcp: lookup podseal.io: no such host`
	const pull = "image podseal.io/podseal:x can't be pulled: dial tcp: lookup podseal.io: no such host"
	for _, tc := range []struct{ reason, message, want string }{
		{"ErrImagePull", cause, pull},
		{"ImagePullBackOff", `Back-off pulling image "podseal.io/podseal:x": ErrImagePull: ` + cause, pull},
		{"ImagePullBackOff", `Back-off pulling image "podseal.io/podseal:x"`, "image podseal.io/podseal:x can't be pulled"},
		{"ErrImagePull", `Head "https://podseal.io/": dial tcp: lookup podseal.io on 10.0.0.1:53: read udp 10.0.0.2:47046->10.0.0.1:53: i/o timeout`, "image podseal.io/podseal:x can't be pulled: dial tcp: lookup podseal.io on 10.0.0.1:53: i/o timeout"},
		{"ErrImageNeverPull", "Container image is not present\nand more", "ErrImageNeverPull Container image is not present"},
		{"CrashLoopBackOff", "", "CrashLoopBackOff"},
	} {
		if got := troubleText(&corev1.ContainerStateWaiting{Reason: tc.reason, Message: tc.message}, "podseal.io/podseal:x"); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.reason, got, tc.want)
		}
	}
	long := cut(string(make([]byte, 1000)))
	if len(long) > maxTrouble+len("…") {
		t.Errorf("%d bytes", len(long))
	}
}

// TestTroubleOfTheNewest: an old ReplicaSet whose image can't be pulled says
// nothing about the one that is being rolled out.
func TestTroubleOfTheNewest(t *testing.T) {
	set := func(hash, revision string) *appsv1.ReplicaSet {
		return &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{
			Namespace: "d8-istio", Name: "istiod-" + hash, Labels: map[string]string{"app": "istiod", "pod-template-hash": hash},
			Annotations: map[string]string{"deployment.kubernetes.io/revision": revision},
		}}
	}
	pod := func(hash, reason string) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "d8-istio", Name: "istiod-" + hash + "-x", Labels: map[string]string{"app": "istiod", "pod-template-hash": hash}}}
		if reason != "" {
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{Image: hash, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}}}
		}
		return p
	}
	for name, tc := range map[string]struct {
		objects []client.Object
		want    string
	}{
		"the old one's": {[]client.Object{set("a", "9"), set("b", "10"), pod("a", "ErrImagePull"), pod("b", "")}, ""},
		"the new one's": {[]client.Object{set("a", "9"), set("b", "10"), pod("a", ""), pod("b", "ErrImagePull")}, "image b can't be pulled"},
		"rolled back":   {[]client.Object{set("a", "11"), set("b", "10"), pod("a", "ErrImagePull"), pod("b", "ErrImagePull")}, "image a can't be pulled"},
		"no sets":       {[]client.Object{pod("a", "ErrImagePull")}, "image a can't be pulled"},
	} {
		scheme, err := Scheme()
		if err != nil {
			t.Fatal(err)
		}
		c := fake.NewClientBuilder().WithScheme(scheme).WithObjects(tc.objects...).Build()
		if got := PodTrouble(t.Context(), c, "d8-istio", "app", "istiod"); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

// TestSameObject: what controllers write beside us is no change of ours.
func TestSameObject(t *testing.T) {
	object := func(version, image string, ready int64) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{
			"metadata": map[string]any{"name": "x", "resourceVersion": version, "annotations": map[string]any{"deployment.kubernetes.io/revision": version, "a": "b"}},
			"spec":     map[string]any{"image": image},
			"status":   map[string]any{"ready": ready},
		}}
	}
	if !sameObject(object("1", "v1", 0), object("2", "v1", 1)) {
		t.Error("a change of status is a change")
	}
	if sameObject(object("1", "v1", 0), object("2", "v2", 0)) {
		t.Error("a change of spec is none")
	}
}
