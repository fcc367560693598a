package install

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"podseal.io/podseal/api/deckhouse/v1alpha1"
	"podseal.io/podseal/internal/settings"
)

// oldestMinor is the oldest Kubernetes 1.x that is good: from it on, sidecars
// that are init containers are on by default.
const oldestMinor = 29

func (c *Checker) kubernetes() checkGroup {
	return checkGroup{"kubernetes", []check{
		{"the API server answers", func(ctx context.Context) *finding {
			if _, err := c.ServerVersion(ctx); err != nil {
				return failed("check --kubeconfig and --context, and that the cluster runs: kubectl version", "%v", err)
			}
			return nil
		}, true},
		{fmt.Sprintf("Kubernetes is 1.%d or newer", oldestMinor), func(ctx context.Context) *finding {
			v, err := c.ServerVersion(ctx)
			if err != nil {
				return cannotLook(err)
			}
			minor, err := strconv.Atoi(strings.TrimRight(v.Minor, "+"))
			if err != nil || v.Major != "1" {
				return warned("see whether this is a Kubernetes", "version %q is not understood", v.GitVersion)
			}
			if minor < oldestMinor {
				return failed("upgrade the cluster", "it is %s", v.GitVersion)
			}
			return nil
		}, false},
	}}
}

// mayInstall asks for every kind that install applies.
func (c *Checker) mayInstall(ctx context.Context) *finding {
	objects, err := Render(c.Values, PartManager)
	if err != nil {
		return failed("correct the values", "%v", err)
	}
	var missing []string
	asked := map[string]bool{}
	for _, u := range objects {
		gvk := u.GroupVersionKind()
		resource := strings.ToLower(gvk.Kind) + "s"
		if asked[resource] {
			continue
		}
		asked[resource] = true
		for _, verb := range []string{"get", "create", "patch", "delete"} {
			review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
				ResourceAttributes: &authorizationv1.ResourceAttributes{Group: gvk.Group, Resource: resource, Namespace: u.GetNamespace(), Verb: verb},
			}}
			if err := c.Client.Create(ctx, review); err != nil {
				return cannotLook(err)
			}
			if !review.Status.Allowed {
				missing = append(missing, verb+" "+resource)
			}
		}
	}
	if len(missing) > 0 {
		return failed("use a kubeconfig of a cluster administrator", "you may not: %s", strings.Join(missing, ", "))
	}
	return nil
}

func (c *Checker) noOtherMesh(ctx context.Context) *finding {
	list := &admissionv1.MutatingWebhookConfigurationList{}
	if err := c.Client.List(ctx, list); err != nil {
		return cannotLook(err)
	}
	for _, config := range list.Items {
		if config.Labels[partOfLabel] == partOf {
			continue
		}
		for _, hook := range config.Webhooks {
			if strings.HasSuffix(hook.Name, "sidecar-injector.istio.io") {
				return failed("remove that mesh first: two injectors would both add istio-proxy", "MutatingWebhookConfiguration %s is another mesh's", config.Name)
			}
		}
	}
	return nil
}

func (c *Checker) noOtherModule(ctx context.Context) *finding {
	mc, err := c.ModuleConfig(ctx)
	if err != nil {
		return cannotLook(err)
	}
	crd, err := (&Cluster{Client: c.Client}).get(ctx, crdNamed("moduleconfigs.deckhouse.io"))
	if err != nil {
		return cannotLook(err)
	}
	if crd == nil || crd.GetLabels()["heritage"] != "deckhouse" {
		return nil
	}
	if mc != nil && mc.Spec.Enabled != nil && *mc.Spec.Enabled {
		return warned("if Deckhouse's own istio module is on, turn it off before: both would answer to this ModuleConfig", "Deckhouse runs here and ModuleConfig istio is enabled")
	}
	return nil
}

func crdNamed(name string) *unstructured.Unstructured {
	u := &unstructured.Unstructured{}
	u.SetAPIVersion("apiextensions.k8s.io/v1")
	u.SetKind("CustomResourceDefinition")
	u.SetName(name)
	return u
}

func objectNamed(apiVersion, kind, namespace, name string) *unstructured.Unstructured {
	u := &unstructured.Unstructured{}
	u.SetAPIVersion(apiVersion)
	u.SetKind(kind)
	u.SetNamespace(namespace)
	u.SetName(name)
	return u
}

// ModuleConfig reads the ModuleConfig named istio, nil if there is none.
func (c *Checker) ModuleConfig(ctx context.Context) (*v1alpha1.ModuleConfig, error) {
	mc := &v1alpha1.ModuleConfig{}
	err := c.Client.Get(ctx, types.NamespacedName{Name: settings.ModuleName}, mc)
	if apierrors.IsNotFound(err) || meta.IsNoMatchError(err) {
		return nil, nil
	}
	return mc, err
}

func (c *Checker) crds(ctx context.Context) *finding {
	for _, name := range []string{"moduleconfigs.deckhouse.io", "peerauthentications.security.istio.io", "authorizationpolicies.security.istio.io", "requestauthentications.security.istio.io", "destinationrules.networking.istio.io", "serviceentries.networking.istio.io"} {
		now, err := (&Cluster{Client: c.Client}).get(ctx, crdNamed(name))
		if err != nil {
			return cannotLook(err)
		}
		if text := notReady(now); text != "" {
			return failed("run `podseal install`", "CRD %s: %s", name, text)
		}
	}
	return nil
}

func (c *Checker) managerAvailable(ctx context.Context) *finding {
	return c.available(ctx, settings.ManagerNamespace, "podseal-manager", "run `podseal install`")
}

func (c *Checker) controlPlaneAvailable(ctx context.Context) *finding {
	return c.available(ctx, settings.Namespace, "istiod", "see the manager's log: kubectl -n podseal-system logs deployment/podseal-manager")
}

func (c *Checker) available(ctx context.Context, namespace, name, hintIfAbsent string) *finding {
	now, err := (&Cluster{Client: c.Client}).get(ctx, objectNamed("apps/v1", "Deployment", namespace, name))
	if err != nil {
		return cannotLook(err)
	}
	if now == nil {
		return failed(hintIfAbsent, "Deployment %s/%s is not there", namespace, name)
	}
	if text := notReady(now); text != "" {
		if trouble := PodTrouble(ctx, c.Client, namespace, "app", name); trouble != "" {
			text += ": " + trouble
		}
		return failed(fmt.Sprintf("kubectl -n %s describe pods -l app=%s; kubectl -n %[1]s logs -l app=%[2]s", namespace, name), "%s", text)
	}
	return nil
}

// enabled finds a Podseal that is installed and was not told to do anything.
func (c *Checker) enabled(ctx context.Context) *finding {
	mc, err := c.ModuleConfig(ctx)
	if err != nil {
		return cannotLook(err)
	}
	switch {
	case mc == nil:
		return &finding{Off, "Podseal is installed, and the mesh is not enabled: there is no ModuleConfig istio", "enable it:\n" + strings.TrimSpace(EnableText)}
	case mc.Spec.Enabled == nil || !*mc.Spec.Enabled:
		return &finding{
			Off, "Podseal is installed, and the mesh is not enabled: ModuleConfig istio says so",
			`enable it: kubectl patch moduleconfig istio --type merge -p '{"spec":{"enabled":true}}'`,
		}
	}
	return nil
}

// EnableText is the command that turns the mesh on.
const EnableText = `kubectl create -f - <<EOF
apiVersion: deckhouse.io/v1alpha1
kind: ModuleConfig
metadata:
  name: istio
spec:
  version: 3
  enabled: true
EOF
`

func (c *Checker) settingsInForce(ctx context.Context) *finding {
	mc, err := c.ModuleConfig(ctx)
	if err != nil || mc == nil {
		return cannotLook(cmp.Or(err, errors.New("ModuleConfig istio has just gone")))
	}
	message := mc.Status.Message
	elsewhere := &corev1.ConfigMap{}
	if err := c.Client.Get(ctx, types.NamespacedName{Namespace: settings.ManagerNamespace, Name: StatusConfigMap}, elsewhere); err == nil {
		message = elsewhere.Data["message"]
	}
	first, rest, _ := strings.Cut(message, "\n")
	switch {
	case first == MessageReady && rest == "":
		return nil
	case first == MessageReady:
		return warned("these settings have no effect; leave them out or know that", "%s", rest)
	case strings.HasPrefix(message, messageMaintenance):
		return warned("remove spec.maintenance when done", "%s", message)
	case strings.HasPrefix(message, messageWaiting):
		return failed("wait, or see below what is missing; kubectl -n podseal-system logs deployment/podseal-manager", "%s", message)
	case strings.HasPrefix(message, messageFailed):
		return failed("the manager tries again by itself; its log: kubectl -n podseal-system logs deployment/podseal-manager", "%s", message)
	case message == "":
		return failed("see the manager's log: kubectl -n podseal-system logs deployment/podseal-manager", "the manager has not answered yet")
	default:
		return failed("correct ModuleConfig istio; kubectl get moduleconfig istio -o yaml shows the whole message", "%s", message)
	}
}
