package install

import (
	"context"
	"regexp"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// podTroubles are words of a waiting container that need a human.
var podTroubles = [...]string{"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "CrashLoopBackOff", "CreateContainerConfigError", "CreateContainerError", "RunContainerError"}

// maxTrouble is how long the words of the kubelet may be, in bytes.
const maxTrouble = 200

// PodTrouble says what keeps the newest pods of a Deployment from running, those
// with that label, "" if nothing is known: the words of the kubelet or of the
// scheduler. Pods of an older ReplicaSet are about to go, whatever ails them.
func PodTrouble(ctx context.Context, c client.Client, namespace, label, value string) string {
	pods := &corev1.PodList{}
	if err := c.List(ctx, pods, client.InNamespace(namespace), client.MatchingLabels{label: value}); err != nil {
		return ""
	}
	newest := newestTemplate(ctx, c, namespace, label, value)
	for _, p := range pods.Items {
		if newest != "" && p.Labels[appsv1.DefaultDeploymentUniqueLabelKey] != newest {
			continue
		}
		for _, cs := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
			if w := cs.State.Waiting; w != nil && slices.Contains(podTroubles[:], w.Reason) {
				return troubleText(w, cs.Image)
			}
		}
		for _, cond := range p.Status.Conditions {
			if cond.Type == corev1.PodScheduled && cond.Status == corev1.ConditionFalse {
				return cond.Message
			}
		}
	}
	return ""
}

// newestTemplate is the hash of the pod template that the Deployment rolls out
// now, "" if it can't be told.
func newestTemplate(ctx context.Context, c client.Client, namespace, label, value string) string {
	sets := &appsv1.ReplicaSetList{}
	if err := c.List(ctx, sets, client.InNamespace(namespace), client.MatchingLabels{label: value}); err != nil || len(sets.Items) == 0 {
		return ""
	}
	revision := func(s *appsv1.ReplicaSet) int {
		n, err := strconv.Atoi(s.Annotations["deployment.kubernetes.io/revision"])
		if err != nil {
			return 0
		}
		return n
	}
	newest := slices.MaxFunc(sets.Items, func(a, b appsv1.ReplicaSet) int { return revision(&a) - revision(&b) })
	return newest.Labels[appsv1.DefaultDeploymentUniqueLabelKey]
}

// troubleText says it in one line that stays the same while the trouble does:
// the kubelet changes between two words for an image that can't be had.
func troubleText(w *corev1.ContainerStateWaiting, image string) string {
	text, _, _ := strings.Cut(strings.TrimSpace(w.Message), "\n")
	if w.Reason != "ErrImagePull" && w.Reason != "ImagePullBackOff" {
		return cut(strings.TrimSpace(w.Reason + " " + text))
	}
	// what comes after the last name in quotes is the reason
	cause := ""
	if i := strings.LastIndex(text, `": `); i >= 0 {
		cause = ": " + regexp.MustCompile(`\b(read|write) (tcp|udp) \S+: `).ReplaceAllString(text[i+len(`": `):], "") // with another port each time
	}
	return cut("image " + image + " can't be pulled" + cause)
}

func cut(text string) string {
	if len(text) <= maxTrouble {
		return text
	}
	return strings.ToValidUTF8(text[:maxTrouble], "") + "…"
}

// deploymentTrouble adds to what is pending why its pods don't run.
func deploymentTrouble(ctx context.Context, c client.Client, u *unstructured.Unstructured) string {
	if u.GetKind() != "Deployment" {
		return ""
	}
	app, _, _ := unstructured.NestedString(u.Object, "spec", "selector", "matchLabels", "app")
	if trouble := PodTrouble(ctx, c, u.GetNamespace(), "app", app); trouble != "" {
		return " (" + trouble + ")"
	}
	return ""
}
