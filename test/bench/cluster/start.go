package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// startLimit is how much later a pod may start, in seconds.
const startLimit = 1

// stamp is what the application of a pod does: it says when it was started, in
// nanoseconds, and waits. The nodes have the clock of this machine.
const stamp = "date +%s%N; exec sleep infinity"

// way is a way to start a pod.
type way struct {
	name, namespace string
	annotations     map[string]string
}

var held = map[string]string{
	"sidecar.istio.io/nativeSidecar": "false", "proxy.istio.io/config": `{"holdApplicationUntilProxyStarts": true}`,
}

// ways are to be compared with the first of each list: that is measured in turn with
// the others, since the machine changes.
var ways = map[string][]way{
	"InitContainer": {
		{"without injection", plain, nil},
		{"native sidecar, istio-init", meshed, nil},
		{"classic sidecar, held, istio-init", meshed, held},
	},
	"CNIPlugin": {
		{"without injection, the CNI plugin on the node", plain, nil},
		{"native sidecar, CNI plugin", meshed, nil},
		{"classic sidecar, held, CNI plugin", meshed, held},
	},
}

// start starts pods, one at a time and each way in turn, at random moments: the
// kubelet looks at its containers once a second, and each must meet it at any phase.
func (m *mesh) start(ctx context.Context, o Options, r *Report) error {
	for _, mode := range []string{"InitContainer", "CNIPlugin"} {
		if err := m.capture(ctx, mode); err != nil {
			return err
		}
		started, ready := make([][]float64, len(ways[mode])), make([][]float64, len(ways[mode]))
		for i := range o.Pods {
			for w, how := range ways[mode] {
				time.Sleep(time.Duration(rand.Int64N(int64(time.Second))))
				s, d, err := m.startOne(ctx, template(how.namespace, fmt.Sprintf("start-%s-%d-%d", strings.ToLower(mode), i, w), how.annotations))
				if err != nil {
					return err
				}
				started[w], ready[w] = append(started[w], s.Seconds()), append(ready[w], d.Seconds())
			}
			fmt.Fprintf(os.Stderr, "%s, start %d of %d: process after %.2f %.2f %.2f s, ready after %.2f %.2f %.2f s\n", mode, i+1, o.Pods,
				started[0][i], started[1][i], started[2][i], ready[0][i], ready[1][i], ready[2][i])
		}
		for w, how := range ways[mode] {
			r.add(Figure{Name: "pod created → application's process started, " + how.name, Unit: "s", Series: started[w]})
			r.add(Figure{Name: "pod created → application ready, " + how.name, Unit: "s", Series: ready[w]})
		}
		for w, how := range ways[mode][1:] {
			r.add(Figure{Name: "process started later by, " + how.name, Unit: "s", Value: median(started[w+1]) - median(started[0]), Limit: startLimit, Note: "difference of the medians"})
			r.add(Figure{Name: "ready later by, " + how.name, Unit: "s", Value: median(ready[w+1]) - median(ready[0]), Limit: startLimit, Note: "difference of the medians"})
		}
	}
	return m.capture(ctx, "InitContainer")
}

// capture sets how pods are captured, and waits until that is in force.
func (m *mesh) capture(ctx context.Context, mode string) error {
	module := object("deckhouse.io/v1alpha1", "ModuleConfig", "", "istio", nil)
	patch := fmt.Sprintf(`{"spec":{"settings":{"dataPlane":{"trafficRedirectionSetupMode":%q}}}}`, mode)
	if err := m.kube.Patch(ctx, module, client.RawPatch(types.MergePatchType, []byte(patch))); err != nil {
		return fmt.Errorf("set how pods are captured: %w", err)
	}
	return m.poll(ctx, "capture by "+mode, func(ctx context.Context) error {
		pod := template(meshed, "capture", nil)
		if err := m.kube.Create(ctx, pod, client.DryRunAll); err != nil {
			return err
		}
		if byInit := pod.Spec.InitContainers[0].Name == "istio-init"; byInit != (mode == "InitContainer") {
			return errors.New("new pods are captured the other way")
		}
		return nil
	})
}

// startOne starts a pod and measures from before the request, which the webhook
// is part of, until the application's process has started, by what that says itself,
// and until the API server says that the application is ready.
func (m *mesh) startOne(ctx context.Context, pod *corev1.Pod) (started, ready time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	pod.Spec.Containers[0].Command = []string{"sh", "-c", stamp}
	events, err := m.kube.Watch(ctx, &corev1.PodList{}, client.InNamespace(pod.Namespace), client.MatchingFields{"metadata.name": pod.Name})
	if err != nil {
		return 0, 0, fmt.Errorf("watch pods: %w", err)
	}
	defer events.Stop()
	began := time.Now()
	if err := m.kube.Create(ctx, pod); err != nil {
		return 0, 0, fmt.Errorf("start pod: %w", err)
	}
	if err := until(events, func(e watch.Event) bool {
		p, ok := e.Object.(*corev1.Pod)
		return ok && appReady(p)
	}); err != nil {
		return 0, 0, fmt.Errorf("pod %s: %w", pod.Name, err)
	}
	ready = time.Since(began)
	text, err := m.logs.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{Container: "app"}).DoRaw(ctx)
	if err != nil {
		return 0, 0, fmt.Errorf("read when pod %s was started: %w", pod.Name, err)
	}
	at, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("when pod %s was started: %w", pod.Name, err)
	}
	started = time.Unix(0, at).Sub(began)
	if err := m.kube.Delete(ctx, pod, client.GracePeriodSeconds(1)); err != nil {
		return 0, 0, fmt.Errorf("remove pod: %w", err)
	}
	return started, ready, until(events, func(e watch.Event) bool { return e.Type == watch.Deleted })
}

func appReady(pod *corev1.Pod) bool {
	for _, s := range pod.Status.ContainerStatuses {
		if s.Name == "app" {
			return s.Ready
		}
	}
	return false
}

// until reads events until one is the right one.
func until(events watch.Interface, right func(watch.Event) bool) error {
	for e := range events.ResultChan() {
		if right(e) {
			return nil
		}
	}
	return errors.New("the watch ended before it came to that")
}
