package inject

import (
	"cmp"
	"regexp"
	"strings"

	"istio.io/api/label"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// workload is what a pod is an instance of, as users name it.
type workload struct {
	name, kind, apiVersion string
}

// workloadOf derives the workload from the pod alone. The controller of a
// Deployment's pod is a ReplicaSet, which is named after the Deployment and the
// hash of the pod template; that of a CronJob's pod is a Job, which is named
// after the CronJob and the time.
func workloadOf(pod *corev1.Pod) workload {
	owner := metav1.GetControllerOf(pod)
	if owner == nil {
		return workload{cmp.Or(pod.Name, strings.TrimRight(pod.GenerateName, "-")), "Pod", "v1"}
	}
	w := workload{owner.Name, owner.Kind, owner.APIVersion}
	switch owner.Kind {
	case "ReplicaSet":
		// Argo Rollouts has a hash label of its own
		for hashLabel, of := range map[string]workload{
			"pod-template-hash":          {"", "Deployment", owner.APIVersion},
			"rollouts-pod-template-hash": {"", "Rollout", "argoproj.io/v1alpha1"},
		} {
			hash := pod.Labels[hashLabel]
			if name, ok := strings.CutSuffix(owner.Name, "-"+hash); ok && hash != "" && name != "" {
				of.name = name
				return of
			}
		}
	case "Job":
		return ofJob(w)
	}
	return w
}

// ofJob is the CronJob that a Job was made by, as its name says, or the Job.
func ofJob(job workload) workload {
	if m := regexp.MustCompile(`^(.+)-\d{8,10}$`).FindStringSubmatch(job.name); m != nil {
		return workload{m[1], "CronJob", job.apiVersion}
	}
	return job
}

// workload is what the pod of the request is an instance of.
func (r *Request) workload() workload {
	if r.owner != nil {
		return *r.owner
	}
	return workloadOf(r.Pod)
}

// reference is the workload in the form of ISTIO_META_OWNER.
func (w workload) reference(namespace string) string {
	return "kubernetes://apis/" + w.apiVersion + "/namespaces/" + namespace + "/" + strings.ToLower(w.kind) + "s/" + w.name
}

// canonicalName is the name of the service that the workload is, in telemetry
// (contract 5.11).
func (w workload) canonicalName(labels map[string]string) string {
	for _, name := range []string{label.ServiceCanonicalName.Name, "app.kubernetes.io/name", "app"} {
		if value := labels[name]; value != "" {
			return value
		}
	}
	name := w.name
	if len(name) > 63 {
		name = name[:63]
	}
	return strings.Trim(name, "-_.")
}

// canonicalRevision is its version, in telemetry (contract 5.11).
func canonicalRevision(labels map[string]string) string {
	return cmp.Or(labels[label.ServiceCanonicalRevision.Name], labels["app.kubernetes.io/version"], labels["version"], "latest")
}
