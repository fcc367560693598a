package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"podseal.io/podseal/test/e2e/walkthrough"
)

// Namespaces of the run: with injection and without.
const (
	meshed = "bench-mesh"
	plain  = "bench-plain"
)

// port is where the bench's own server listens, in the pods called server.
const port = 7000

// mesh is a cluster with Podseal, and the pods between which is measured.
type mesh struct {
	kube    client.WithWatch
	logs    kubernetes.Interface
	local   walkthrough.Local
	servers map[string]*corev1.Pod // by namespace
	clients map[string]*corev1.Pod
	idle    *corev1.Pod
}

// newMesh turns the mesh on and starts the pods. The idle one is first, so that
// it is old when its memory is measured.
func newMesh(ctx context.Context, o Options, local walkthrough.Local) (*mesh, error) {
	path, err := o.Setup.Kubeconfig(ctx)
	if err != nil {
		return nil, err
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, fmt.Errorf("read the kubeconfig: %w", err)
	}
	cfg.QPS, cfg.Burst = 200, 400 // the client must not be what is measured
	m := &mesh{local: local, servers: map[string]*corev1.Pod{}, clients: map[string]*corev1.Pod{}}
	if m.kube, err = client.NewWithWatch(cfg, client.Options{}); err != nil {
		return nil, fmt.Errorf("prepare a client: %w", err)
	}
	if m.logs, err = kubernetes.NewForConfig(cfg); err != nil {
		return nil, fmt.Errorf("prepare a client: %w", err)
	}
	if err := m.enable(ctx); err != nil {
		return nil, err
	}
	if m.idle, err = m.run(ctx, meshed, "idle"); err != nil {
		return nil, err
	}
	for _, ns := range []string{meshed, plain} {
		if m.servers[ns], err = m.run(ctx, ns, "server"); err != nil {
			return nil, err
		}
		if m.clients[ns], err = m.run(ctx, ns, "client"); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// enable turns the mesh on and makes the two namespaces, empty.
func (m *mesh) enable(ctx context.Context) error {
	module := object("deckhouse.io/v1alpha1", "ModuleConfig", "", "istio", map[string]any{"version": int64(3), "enabled": true})
	if err := m.kube.Create(ctx, module); err != nil {
		return fmt.Errorf("enable the module: %w", err)
	}
	const line = `for i in $(seq 120); do kubectl -n d8-istio rollout status deployment/istiod --timeout=60s 2>/dev/null && break; sleep 0.5; done
kubectl delete namespace --ignore-not-found ` + meshed + " " + plain
	if out, code, err := m.local.Shell(ctx, line); err != nil || code != 0 {
		return fmt.Errorf("wait for the control plane (exit code %d): %w: %s", code, err, out)
	}
	for ns, labels := range map[string]map[string]string{
		meshed: {"istio-injection": "enabled", "security.deckhouse.io/pod-policy": "privileged"}, plain: nil,
	} {
		if err := m.kube.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns, Labels: labels}}); err != nil {
			return fmt.Errorf("make namespace %s: %w", ns, err)
		}
	}
	return m.poll(ctx, "the namespaces are ready for pods", func(ctx context.Context) error {
		for _, ns := range []string{meshed, plain} {
			var account corev1.ServiceAccount
			if err := m.kube.Get(ctx, client.ObjectKey{Namespace: ns, Name: "default"}, &account); err != nil {
				return err
			}
		}
		var n corev1.Namespace
		if err := m.kube.Get(ctx, client.ObjectKey{Name: meshed}, &n); err != nil {
			return err
		}
		if n.Labels["pod-security.kubernetes.io/enforce"] != "privileged" {
			return errors.New("the Pod Security label is not there yet")
		}
		return nil
	})
}

// object is one of a kind that has no Go type here.
func object(apiVersion, kind, namespace, name string, spec map[string]any) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: map[string]any{"spec": spec}}
	u.SetGroupVersionKind(schema.FromAPIVersionAndKind(apiVersion, kind))
	u.SetNamespace(namespace)
	u.SetName(name)
	return u
}

// poll repeats until it succeeds, for a minute.
func (m *mesh) poll(ctx context.Context, what string, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// template is a pod of one container, app, that waits to be used.
func template(namespace, name string, annotations map[string]string) *corev1.Pod {
	soon := int64(0)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Annotations: maps.Clone(annotations), Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &soon,
			Containers:                    []corev1.Container{{Name: "app", Image: walkthrough.Image, Command: []string{"sleep", "infinity"}}},
		},
	}
}

// run starts a pod and waits until it is ready.
func (m *mesh) run(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	pod := template(namespace, name, nil)
	if err := m.kube.Create(ctx, pod); err != nil {
		return nil, fmt.Errorf("start pod %s: %w", name, err)
	}
	return pod, m.poll(ctx, "pod "+namespace+"/"+name, func(ctx context.Context) error {
		if err := m.kube.Get(ctx, client.ObjectKeyFromObject(pod), pod); err != nil {
			return err
		}
		if !isReady(pod) {
			return fmt.Errorf("not ready yet, it is %s", pod.Status.Phase)
		}
		return nil
	})
}

func isReady(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// containerID finds a container's ID in the status of its pod, or "".
func containerID(pod *corev1.Pod, name string) string {
	for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if s.Name == name {
			return strings.TrimPrefix(s.ContainerID, "containerd://")
		}
	}
	return ""
}
