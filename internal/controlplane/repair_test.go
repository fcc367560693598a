package controlplane

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"podseal.io/podseal/internal/inject"
	"podseal.io/podseal/internal/settings"
)

// heldPod is a pod whose proxy has found that it is not captured.
func heldPod(name, node, owner string, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(name)},
		Spec:       corev1.PodSpec{NodeName: node},
		Status: corev1.PodStatus{Phase: corev1.PodPending, InitContainerStatuses: []corev1.ContainerStatus{{
			Name: inject.ProxyContainer, LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: exitUncaptured}},
		}}},
	}
	if owner != "" {
		p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: owner, UID: types.UID(owner), Controller: new(true)}}
	}
	for _, c := range change {
		c(p)
	}
	return p
}

func madeAt(at time.Time) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.CreationTimestamp = metav1.NewTime(at) }
}

// agentPod is the CNI plugin's agent on a node.
func agentPod(node string, ready corev1.ConditionStatus) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: testNamespace, Name: "agent-" + node, Labels: map[string]string{agentLabel: agentName}},
		Spec:       corev1.PodSpec{NodeName: node},
		Status:     corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}},
	}
}

func names(t *testing.T, c client.Client) (out []string) {
	t.Helper()
	var pods corev1.PodList
	if err := c.List(t.Context(), &pods, client.InNamespace("shop")); err != nil {
		t.Fatal(err)
	}
	for i := range pods.Items {
		out = append(out, pods.Items[i].Name)
	}
	return out
}

// TestRepair is contract 5.52: a pod that slipped in uncaptured is deleted, if something
// makes it anew and its node captures now; nobody else is.
func TestRepair(t *testing.T) {
	c := fakeClient(agentPod("good", corev1.ConditionTrue), agentPod("bad", corev1.ConditionFalse),
		heldPod("held", "good", "a"),
		heldPod("classic", "good", "b", func(p *corev1.Pod) { p.Status.InitContainerStatuses[0].Name = inject.ValidationContainer }),
		heldPod("of-nobody", "good", ""),
		heldPod("elsewhere", "bad", "c"),
		heldPod("unplaced", "", "d"),
		heldPod("running", "good", "e", func(p *corev1.Pod) {
			p.Status.InitContainerStatuses[0].State.Running = &corev1.ContainerStateRunning{}
		}),
		heldPod("other-code", "good", "f", func(p *corev1.Pod) {
			p.Status.InitContainerStatuses[0].LastTerminationState.Terminated.ExitCode = 1
		}),
		heldPod("application", "good", "g", func(p *corev1.Pod) { p.Status.InitContainerStatuses[0].Name = "app" }),
		heldPod("over", "good", "h", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }),
	)
	recorder := events.NewFakeRecorder(20)
	s := settings.Settings{}
	r := &repairer{client: c, settings: func() (settings.Settings, error) { return s, nil }, namespace: testNamespace, events: recorder, now: at(epoch), log: quietLog, tried: map[types.UID]attempt{}}
	if err := r.step(t.Context()); err != nil || len(names(t, c)) != 9 {
		t.Fatalf("without the plugin: %v, %v", names(t, c), err)
	}
	s.CNIPlugin = true
	if err := r.step(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, want := names(t, c), []string{"application", "elsewhere", "of-nobody", "other-code", "over", "running", "unplaced"}; !slices.Equal(got, want) {
		t.Errorf("left: %v, want %v", got, want)
	}
	if len(recorder.Events) != 2 {
		t.Fatalf("%d Events", len(recorder.Events))
	}
	if said := <-recorder.Events; !strings.Contains(said, "Warning UncapturedPodDeleted the CNI plugin was not on node good") || !strings.Contains(said, "ReplicaSet b makes the pod anew") {
		t.Errorf("Event %q", said)
	}
}

// TestRepairIsBounded: many held pods go by and by, and a workload whose pods are held
// whatever is done waits longer each time.
func TestRepairIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := fakeClient(agentPod("n", corev1.ConditionTrue))
		for i := range 25 {
			if err := c.Create(t.Context(), heldPod(fmt.Sprint("p", i), "n", fmt.Sprint("rs", i%3), madeAt(time.Now().Add(-time.Minute)))); err != nil {
				t.Fatal(err)
			}
		}
		r := &repairer{client: c, settings: func() (settings.Settings, error) { return settings.Settings{CNIPlugin: true}, nil }, namespace: testNamespace, events: events.NewFakeRecorder(10000), now: time.Now, log: quietLog, tried: map[types.UID]attempt{}}
		step := func() {
			t.Helper()
			if err := r.step(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		for _, want := range []int{15, 5, 0} {
			if step(); len(names(t, c)) != want {
				t.Errorf("left: %d, want %d", len(names(t, c)), want)
			}
		}
		var at []time.Duration
		for start := time.Now(); time.Since(start) < time.Hour; time.Sleep(repairEvery) {
			if len(names(t, c)) == 0 { // and the new one is held again
				at = append(at, time.Since(start))
				if err := c.Create(t.Context(), heldPod("again", "n", "rs-bad", madeAt(time.Now()))); err != nil {
					t.Fatal(err)
				}
			}
			step()
		}
		if len(at) < 8 || len(at) > 14 {
			t.Errorf("in an hour made anew %d times, at %v", len(at), at)
		}
		if last := at[len(at)-1] - at[len(at)-2]; last != repairLongest {
			t.Errorf("the last time after %s, want %s", last, repairLongest)
		}
		time.Sleep(3 * repairLongest)
		if step(); len(r.tried) > 1 {
			t.Errorf("%d workloads are remembered", len(r.tried))
		}
	})
}

// TestTrimKeepsWhatIsHeld: what the cache keeps of a pod is enough to see that it is held,
// and which proxy it has.
func TestTrimKeepsWhatIsHeld(t *testing.T) {
	p := heldPod("held", "n", "rs")
	p.Spec.InitContainers = []corev1.Container{{Name: inject.ProxyContainer, Image: proxyNow}, {Name: "init", Image: "x"}}
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "app"}}
	out, err := trimPod(p)
	if err != nil {
		t.Fatal(err)
	}
	if got := out.(*corev1.Pod); !held(got) || len(got.Status.ContainerStatuses) != 0 || len(got.Spec.InitContainers) != 1 || got.Spec.InitContainers[0].Image != proxyNow {
		t.Errorf("kept %+v", got)
	}
}
