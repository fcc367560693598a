package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// startLimit is how much later the application may be ready, in seconds.
const startLimit = 1

// way is a way to start a pod.
type way struct {
	name, namespace string
	annotations     map[string]string
}

var ways = []way{
	{"without injection", plain, nil},
	{"native sidecar", meshed, nil},
	{"classic sidecar, held", meshed, map[string]string{
		"sidecar.istio.io/nativeSidecar": "false", "proxy.istio.io/config": `{"holdApplicationUntilProxyStarts": true}`,
	}},
}

// start starts pods, one at a time and each way in turn, at random moments: the
// kubelet looks at its containers once a second, and each must meet it at any phase.
func (m *mesh) start(ctx context.Context, o Options, r *Report) error {
	took := make([][]float64, len(ways))
	for i := range o.Pods {
		for w, how := range ways {
			time.Sleep(time.Duration(rand.Int64N(int64(time.Second))))
			d, err := m.startOne(ctx, template(how.namespace, fmt.Sprintf("start-%d-%d", i, w), how.annotations))
			if err != nil {
				return err
			}
			took[w] = append(took[w], d.Seconds())
		}
		fmt.Fprintf(os.Stderr, "start %d of %d: %.2f s\n", i+1, o.Pods, []float64{took[0][i], took[1][i], took[2][i]})
	}
	for w, how := range ways {
		r.add(Figure{Name: "pod created → application ready, " + how.name, Unit: "s", Series: took[w]})
	}
	for w, how := range ways[1:] {
		r.add(Figure{Name: "later by, " + how.name, Unit: "s", Value: median(took[w+1]) - median(took[0]), Limit: startLimit, Note: "difference of the medians"})
	}
	return nil
}

// startOne starts a pod and measures from before the request, which the webhook
// is part of, until the API server says that the application is ready.
func (m *mesh) startOne(ctx context.Context, pod *corev1.Pod) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	events, err := m.kube.Watch(ctx, &corev1.PodList{}, client.InNamespace(pod.Namespace), client.MatchingFields{"metadata.name": pod.Name})
	if err != nil {
		return 0, fmt.Errorf("watch pods: %w", err)
	}
	defer events.Stop()
	began := time.Now()
	if err := m.kube.Create(ctx, pod); err != nil {
		return 0, fmt.Errorf("start pod: %w", err)
	}
	if err := until(events, func(e watch.Event) bool {
		p, ok := e.Object.(*corev1.Pod)
		return ok && appReady(p)
	}); err != nil {
		return 0, fmt.Errorf("pod %s: %w", pod.Name, err)
	}
	took := time.Since(began)
	if err := m.kube.Delete(ctx, pod, client.GracePeriodSeconds(1)); err != nil {
		return 0, fmt.Errorf("remove pod: %w", err)
	}
	return took, until(events, func(e watch.Event) bool { return e.Type == watch.Deleted })
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
