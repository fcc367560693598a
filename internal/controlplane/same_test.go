package controlplane

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"podseal.io/podseal/api/deckhouse/v1alpha1"
	"podseal.io/podseal/internal/inject"
	"podseal.io/podseal/internal/settings"
)

// goldenPod is one of the files that injection is tested with.
type goldenPod struct {
	Namespace *corev1.Namespace     `json:"namespace"`
	Pod       *corev1.Pod           `json:"pod"`
	Settings  *runtime.RawExtension `json:"settings"`
	Params    *inject.Params        `json:"params"`
}

func goldenPods(t *testing.T) map[string]goldenPod {
	t.Helper()
	files, err := filepath.Glob("../inject/testdata/*.in.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no pods to inject", err)
	}
	pods := map[string]goldenPod{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var p goldenPod
		if err := yaml.UnmarshalStrict(text, &p); err != nil {
			t.Fatal(file, err)
		}
		p.Pod.APIVersion, p.Pod.Kind, p.Pod.Namespace = "v1", "Pod", p.Namespace.Name
		pods[strings.TrimSuffix(filepath.Base(file), ".in.yaml")] = p
	}
	return pods
}

// TestCommandAndWebhookGiveTheSame: every golden pod comes into being by the webhook,
// asked as the API server asks and its patch applied, and by the manifests that podseal
// inject writes; the pods that are stored are compared whole, and so are refusals.
// Contract 5.8, 5.12, 5.17.
func TestCommandAndWebhookGiveTheSame(t *testing.T) {
	for name, c := range goldenPods(t) {
		t.Run(name, func(t *testing.T) {
			s, _, err := settings.Parse(&v1alpha1.ModuleConfig{Spec: v1alpha1.ModuleConfigSpec{Version: settings.LatestVersion, Settings: c.Settings}}, settings.Cluster{})
			if err != nil {
				t.Fatal(err)
			}
			a := newTestAuthority(t, time.Now, settingsSecret(t, s), secret(settings.CASecret, newSelfSigned(t, time.Now()).Files().Data()))
			h := newWebhooks(t, a, fakeClient(c.Namespace))
			if c.Params != nil {
				image, address := h.params.ProxyImage, h.params.CAAddress
				h.params = *c.Params
				h.params.ProxyImage, h.params.CAAddress = image, address
			}
			api := apiServer{webhooks: h}

			want, refusal := api.create(t, c.Pod)
			manifest, err := yaml.Marshal(c.Pod)
			if err != nil {
				t.Fatal(err)
			}
			got, err := inject.ReadManifests(manifest, inject.Installation{Settings: s, Params: h.params, Namespace: func(string) (*corev1.Namespace, error) { return c.Namespace, nil }})
			if refusal != "" {
				if err == nil {
					t.Fatalf("the webhook refuses it: %s", refusal)
				}
				for line := range strings.Lines(strings.TrimPrefix(refusal, "podseal can't add the proxy to this pod: ")) {
					if !strings.Contains(err.Error(), strings.TrimSpace(line)) {
						t.Errorf("the command doesn't say %q: %v", line, err)
					}
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var injected corev1.Pod
			if err := yaml.UnmarshalStrict(got.YAML, &injected); err != nil {
				t.Fatal(err)
			}
			stored, refusal := api.create(t, &injected)
			if refusal != "" {
				t.Fatalf("the webhook refuses what the command made: %s", refusal)
			}
			if diff := cmp.Diff(want, stored); diff != "" {
				t.Error(diff)
			}
			if len(want.Annotations["sidecar.istio.io/status"]) < 100 {
				t.Errorf("no proxy: %v", want.Annotations)
			}
		})
	}
}

// apiServer does with a pod what the API server does on its way into the store.
type apiServer struct{ webhooks *webhooks }

// create returns the pod as it is stored, or what the webhook refuses it with.
func (s apiServer) create(t *testing.T, pod *corev1.Pod) (stored *corev1.Pod, refusal string) {
	t.Helper()
	pod = pod.DeepCopy()
	fillIn(pod)
	addAccount(pod)
	raw, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	res := ask(t, s.webhooks.handler(), "/inject", review("Pod", "", "CREATE", pod.Namespace, pod.Name, string(raw), false))
	if !res.Allowed {
		return nil, res.Result.Message
	}
	if len(res.Patch) > 0 {
		patch, err := jsonpatch.DecodePatch(res.Patch)
		if err != nil {
			t.Fatal(err)
		}
		if raw, err = patch.Apply(raw); err != nil {
			t.Fatalf("apply the patch: %v", err)
		}
	}
	stored = &corev1.Pod{}
	if err := json.Unmarshal(raw, stored); err != nil {
		t.Fatal(err)
	}
	fillIn(stored)
	addAccount(stored) // admission begins again after a webhook has changed something
	return stored, ""
}

// addAccount mounts the token of the service account as its admission plugin does.
func addAccount(pod *corev1.Pod) {
	const at = "/var/run/secrets/kubernetes.io/serviceaccount"
	name, has := "kube-api-access-random", false
	for _, v := range pod.Spec.Volumes {
		if strings.HasPrefix(v.Name, "kube-api-access-") {
			name, has = v.Name, true
		}
	}
	if pod.Spec.ServiceAccountName == "" {
		pod.Spec.ServiceAccountName = "default"
	}
	pod.Spec.DeprecatedServiceAccount = pod.Spec.ServiceAccountName
	eachContainer(pod, func(c *corev1.Container) {
		for _, m := range c.VolumeMounts {
			if m.MountPath == at {
				return
			}
		}
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: name, MountPath: at, ReadOnly: true})
		if !has {
			has = true
			pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{}}})
		}
	})
}

func eachContainer(pod *corev1.Pod, do func(*corev1.Container)) {
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			do(&list[i])
		}
	}
}

func orElse[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

// fillIn sets the defaults of a pod that injection can meet, as the API server does
// whenever it decodes one.
func fillIn(pod *corev1.Pod) {
	orElse(&pod.Spec.RestartPolicy, corev1.RestartPolicyAlways)
	orElse(&pod.Spec.DNSPolicy, corev1.DNSClusterFirst)
	orElse(&pod.Spec.SchedulerName, corev1.DefaultSchedulerName)
	orElse(&pod.Spec.TerminationGracePeriodSeconds, new(int64(corev1.DefaultTerminationGracePeriodSeconds)))
	orElse(&pod.Spec.SecurityContext, &corev1.PodSecurityContext{})
	orElse(&pod.Spec.EnableServiceLinks, new(true))
	for i := range pod.Spec.Volumes {
		fillInVolume(&pod.Spec.Volumes[i])
	}
	eachContainer(pod, fillInContainer)
}

func fillInVolume(v *corev1.Volume) {
	const mode = int32(0o644)
	switch {
	case v.Secret != nil:
		orElse(&v.Secret.DefaultMode, new(mode))
	case v.ConfigMap != nil:
		orElse(&v.ConfigMap.DefaultMode, new(mode))
	case v.Projected != nil:
		orElse(&v.Projected.DefaultMode, new(mode))
		for _, p := range v.Projected.Sources {
			if p.ServiceAccountToken != nil {
				orElse(&p.ServiceAccountToken.ExpirationSeconds, new(int64(3600)))
			}
		}
	case v.DownwardAPI != nil:
		orElse(&v.DownwardAPI.DefaultMode, new(mode))
		for _, item := range v.DownwardAPI.Items {
			if item.FieldRef != nil {
				orElse(&item.FieldRef.APIVersion, "v1")
			}
		}
	}
}

func fillInContainer(c *corev1.Container) {
	orElse(&c.TerminationMessagePath, "/dev/termination-log")
	orElse(&c.TerminationMessagePolicy, corev1.TerminationMessageReadFile)
	_, tag, tagged := strings.Cut(c.Image[strings.LastIndex(c.Image, "/")+1:], ":")
	if tagged && tag != "latest" {
		orElse(&c.ImagePullPolicy, corev1.PullIfNotPresent)
	}
	orElse(&c.ImagePullPolicy, corev1.PullAlways)
	for i := range c.Ports {
		orElse(&c.Ports[i].Protocol, corev1.ProtocolTCP)
	}
	for _, e := range c.Env {
		if e.ValueFrom != nil && e.ValueFrom.FieldRef != nil {
			orElse(&e.ValueFrom.FieldRef.APIVersion, "v1")
		}
	}
	for name, limit := range c.Resources.Limits {
		if c.Resources.Requests == nil {
			c.Resources.Requests = corev1.ResourceList{}
		}
		if _, set := c.Resources.Requests[name]; !set {
			c.Resources.Requests[name] = limit.DeepCopy()
		}
	}
	get := func(g *corev1.HTTPGetAction) {
		if g != nil {
			orElse(&g.Path, "/")
			orElse(&g.Scheme, corev1.URISchemeHTTP)
		}
	}
	for _, p := range []*corev1.Probe{c.ReadinessProbe, c.LivenessProbe, c.StartupProbe} {
		if p == nil {
			continue
		}
		orElse(&p.TimeoutSeconds, 1)
		orElse(&p.PeriodSeconds, 10)
		orElse(&p.SuccessThreshold, 1)
		orElse(&p.FailureThreshold, 3)
		get(p.HTTPGet)
		if p.GRPC != nil {
			orElse(&p.GRPC.Service, new(""))
		}
	}
	if c.Lifecycle != nil {
		for _, h := range []*corev1.LifecycleHandler{c.Lifecycle.PreStop, c.Lifecycle.PostStart} {
			if h != nil {
				get(h.HTTPGet)
			}
		}
	}
}
