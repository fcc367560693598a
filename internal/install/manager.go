package install

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"podseal.io/podseal/api/deckhouse/v1alpha1"
	"podseal.io/podseal/internal/settings"
)

// maintenanceLabel marks what is left as it is, as Deckhouse marks it.
const maintenanceLabel = "maintenance"

// settingsKey is the key of the Secret in which the last good settings are.
const settingsKey = "settings.json"

// Messages of a ModuleConfig's status begin with one of these.
const (
	MessageReady       = "Ready"
	messageWaiting     = "Waiting for "
	messageFailed      = "Cannot apply: "
	messageKept        = "Settings refused, the last good ones stay in force:\n"
	messageRefused     = "Settings refused, nothing is started:\n"
	messageMaintenance = "In maintenance: all objects are left as they are"
)

// Pauses until the next look if nothing changes in between: while something is
// waited for, and as a net under the watches.
const (
	lookAgain = 2 * time.Second
	netEvery  = 30 * time.Second
)

// Manager does with the control plane what the ModuleConfig named istio says.
//
//	enabled             the control plane's part of the chart and the Secret
//	                    podseal-settings are applied, and repaired
//	settings refused    all faults go to status.message; what was last good,
//	                    kept in that Secret, stays in force
//	disabled, deleted   the part is removed, webhooks first. The namespace
//	                    d8-istio stays: in it are the root that workloads
//	                    trust and the user's mesh-wide policies
//	in maintenance      nothing is touched but the label maintenance
//
// Where the ModuleConfig CRD is Deckhouse's, the status is Deckhouse's too: the
// answer then goes to the ConfigMap podseal-system/podseal-status.
type Manager struct {
	// Client reads the API server itself, not a cache.
	Client client.Client
	// Values render the control plane's part, apart from what settings say.
	Values Values
	Log    *slog.Logger

	leaving time.Time // since when the CNI plugin is to go
}

// Reconcile implements [reconcile.Reconciler]. The request doesn't matter:
// there is one ModuleConfig.
func (m *Manager) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	mc := &v1alpha1.ModuleConfig{}
	err := m.Client.Get(ctx, types.NamespacedName{Name: settings.ModuleName}, mc)
	switch {
	case apierrors.IsNotFound(err):
		return m.remove(ctx)
	case err != nil:
		return reconcile.Result{}, fmt.Errorf("read ModuleConfig %s: %w", settings.ModuleName, err)
	case mc.Spec.Maintenance == v1alpha1.NoResourceReconciliation:
		err := m.rest(ctx)
		return reconcile.Result{}, errors.Join(err, m.answer(ctx, mc, messageMaintenance))
	case mc.Spec.Enabled == nil || !*mc.Spec.Enabled || mc.DeletionTimestamp != nil:
		result, err := m.remove(ctx)
		return result, errors.Join(err, m.answer(ctx, mc, ""))
	}
	message := m.enable(ctx, mc)
	after := netEvery
	if !strings.HasPrefix(message, MessageReady) {
		after = lookAgain
	}
	return reconcile.Result{RequeueAfter: after}, m.answer(ctx, mc, message)
}

// enable brings the control plane up and returns what is to be said about it.
func (m *Manager) enable(ctx context.Context, mc *v1alpha1.ModuleConfig) string {
	domain, _ := m.Values["clusterDomain"].(string)
	s, warnings, faults := settings.Parse(mc, settings.Cluster{Domain: domain})
	var refused string
	if faults != nil {
		last, err := m.lastGood(ctx)
		switch {
		case err != nil:
			return messageFailed + err.Error()
		case last == nil:
			return messageRefused + faults.Error()
		}
		s, refused = *last, messageKept+faults.Error()
	}
	if err := m.apply(ctx, s); err != nil {
		m.Log.LogAttrs(ctx, slog.LevelError, "apply the control plane", slog.String("error", err.Error()))
		return join(refused, messageFailed+err.Error())
	}
	waiting, err := m.waitingFor(ctx)
	switch {
	case err != nil:
		return join(refused, messageFailed+err.Error())
	case waiting != "":
		return join(refused, messageWaiting+waiting)
	case refused != "":
		return refused
	}
	lines := []string{MessageReady}
	for _, w := range warnings {
		lines = append(lines, "Warning: "+w)
	}
	return strings.Join(lines, "\n")
}

func join(lines ...string) string {
	return strings.Join(slices.DeleteFunc(lines, func(s string) bool { return s == "" }), "\n")
}

func (m *Manager) cluster() *Cluster {
	return &Cluster{Client: m.Client, Owner: OwnerManager, Force: true, Report: func(object string, result Result) {
		if result != Unchanged {
			m.Log.LogAttrs(context.Background(), slog.LevelInfo, "object", slog.String("object", object), slog.String("result", string(result)))
		}
	}}
}

// apply makes the cluster agree with the settings.
func (m *Manager) apply(ctx context.Context, s settings.Settings) error {
	cni, err := m.planCNI(ctx, &s)
	if err != nil {
		return err
	}
	objects, err := m.objects(s, cni)
	if err != nil {
		return err
	}
	cluster := m.cluster()
	if err := cluster.Apply(ctx, objects); err != nil {
		return err
	}
	all, err := m.everything()
	if err != nil {
		return err
	}
	wanted := map[string]bool{}
	for _, u := range objects {
		wanted[describe(u)] = true
	}
	return cluster.Delete(ctx, slices.DeleteFunc(all, func(u *unstructured.Unstructured) bool { return wanted[describe(u)] }))
}

// objects are the control plane's part and the Secret with the settings. cni is what
// the DaemonSet of the CNI plugin is to do, "" for none.
func (m *Manager) objects(s settings.Settings, cni string) ([]*unstructured.Unstructured, error) {
	return m.objectsOf(s, m.valuesFor(s, cni))
}

func (m *Manager) objectsOf(s settings.Settings, values Values) ([]*unstructured.Unstructured, error) {
	objects, err := Render(values, PartControlPlane)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("write the settings as JSON: %w", err)
	}
	secret := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1",
		"kind":       "Secret",
		"metadata": map[string]any{
			"name":      settings.SettingsSecret,
			"namespace": settings.Namespace,
		},
		"type": string(corev1.SecretTypeOpaque),
		"data": map[string]any{settingsKey: text},
	}}
	// through JSON, so that the bytes become what the API has: base64
	raw, err := json.Marshal(secret.Object)
	if err != nil {
		return nil, fmt.Errorf("write the Secret as JSON: %w", err)
	}
	secret.Object = nil
	if err := json.Unmarshal(raw, &secret.Object); err != nil {
		return nil, fmt.Errorf("read the Secret as JSON: %w", err)
	}
	labels := maps.Clone(objects[0].GetLabels())
	maps.DeleteFunc(labels, func(k, _ string) bool { return strings.HasPrefix(k, "pod-security.kubernetes.io/") })
	secret.SetLabels(labels)
	objects = append(objects, secret)
	slices.SortStableFunc(objects, func(a, b *unstructured.Unstructured) int { return cmp.Compare(rank(a), rank(b)) })
	return objects, nil
}

// everything is all that any settings could have brought, without the
// namespace, which stays.
func (m *Manager) everything() ([]*unstructured.Unstructured, error) {
	s := settings.Default("")
	s.ControlPlane.Replicas = 2 // more than one brings the PodDisruptionBudget
	s.AutoUpgrade = true
	values := m.valuesFor(s, cniInstall)
	values["cni"] = with(values["cni"], "repair", true)
	objects, err := m.objectsOf(s, values)
	return slices.DeleteFunc(objects, func(u *unstructured.Unstructured) bool { return u.GetKind() == "Namespace" }), err
}

// with is a copy of an object among values, with one more field.
func with(object any, key string, value any) map[string]any {
	out := map[string]any{key: value}
	if was, ok := object.(map[string]any); ok {
		out = maps.Clone(was)
		out[key] = value
	}
	return out
}

// valuesFor lays the settings over the chart values.
func (m *Manager) valuesFor(s settings.Settings, cni string) Values {
	controlPlane := map[string]any{}
	if was, ok := m.Values["controlPlane"].(map[string]any); ok {
		maps.Copy(controlPlane, was)
	}
	cp := s.ControlPlane
	controlPlane["replicas"] = int64(cp.Replicas)
	controlPlane["autoUpgrade"] = s.AutoUpgrade
	resources := map[string]any{}
	for kind, q := range map[string]map[string]string{
		"requests": {"cpu": cp.RequestCPU, "memory": cp.RequestMemory},
		"limits":   {"cpu": cp.LimitCPU, "memory": cp.LimitMemory},
	} {
		set := map[string]any{}
		for name, v := range q {
			if v != "" {
				set[name] = v
			}
		}
		if len(set) > 0 {
			resources[kind] = set
		}
	}
	controlPlane["resources"] = resources
	if len(cp.NodeSelector) > 0 {
		selector := map[string]any{}
		for k, v := range cp.NodeSelector {
			selector[k] = v
		}
		controlPlane["nodeSelector"] = selector
	}
	if len(cp.Tolerations) > 0 {
		tolerations := make([]any, len(cp.Tolerations))
		for i, t := range cp.Tolerations {
			one := map[string]any{}
			for k, v := range map[string]string{"key": t.Key, "operator": t.Operator, "value": t.Value, "effect": t.Effect} {
				if v != "" {
					one[k] = v
				}
			}
			tolerations[i] = one
		}
		controlPlane["tolerations"] = tolerations
	}
	values := maps.Clone(m.Values)
	if values == nil {
		values = Values{}
	}
	values["cni"] = with(m.Values["cni"], "mode", cni)
	values["controlPlane"] = controlPlane
	values["clusterDomain"] = s.ClusterDomain
	if len(s.Revisions) > 0 {
		revisions := make([]any, len(s.Revisions))
		for i, r := range s.Revisions {
			revisions[i] = r
		}
		values["revisions"] = revisions
	}
	return values
}

// lastGood reads the settings that were last in force, nil if none were.
func (m *Manager) lastGood(ctx context.Context) (*settings.Settings, error) {
	secret := &corev1.Secret{}
	err := m.Client.Get(ctx, types.NamespacedName{Namespace: settings.Namespace, Name: settings.SettingsSecret}, secret)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the last good settings: %w", err)
	}
	s := &settings.Settings{}
	if err := json.Unmarshal(secret.Data[settingsKey], s); err != nil {
		return nil, nil // a Secret that somebody spoiled holds no settings
	}
	return s, nil
}

// waitingFor says what the control plane still lacks, "" if nothing.
func (m *Manager) waitingFor(ctx context.Context) (string, error) {
	all, err := m.everything()
	if err != nil {
		return "", err
	}
	cluster := m.cluster()
	if text, err := cluster.Pending(all)(ctx); err != nil || text != "" {
		return text, err
	}
	if now, err := cluster.cni(ctx); err != nil {
		return "", err
	} else if now != nil {
		inForce, err := m.lastGood(ctx)
		if pending := cniPending(now); err != nil || (pending != "" && (inForce == nil || !inForce.CNIPlugin)) {
			return describe(now) + ": " + pending + "; meanwhile init containers capture new pods", err
		}
	}
	for _, u := range all {
		if !isWebhook(u) {
			continue
		}
		now, err := cluster.get(ctx, u)
		if err != nil {
			return "", err
		}
		if n := unsigned(now); n > 0 {
			return fmt.Sprintf("%s: %d entries have no caBundle yet", describe(u), n), nil
		}
	}
	return "", nil
}

// unsigned counts the webhooks of a configuration that have no caBundle.
func unsigned(u *unstructured.Unstructured) (n int) {
	if u == nil {
		return 0
	}
	hooks, _, _ := unstructured.NestedSlice(u.Object, "webhooks")
	for _, hook := range hooks {
		if h, ok := hook.(map[string]any); ok {
			if bundle, _ := nested(h, "clientConfig", "caBundle").(string); bundle == "" {
				n++
			}
		}
	}
	return n
}

// remove takes the control plane away, webhooks first, and then the CNI plugin.
func (m *Manager) remove(ctx context.Context) (reconcile.Result, error) {
	all, err := m.everything()
	if err != nil {
		return reconcile.Result{}, err
	}
	cluster := m.cluster()
	if err := cluster.Delete(ctx, withoutCNI(all)); err != nil {
		return reconcile.Result{}, err
	}
	there, err := cluster.cni(ctx)
	if err != nil || there == nil {
		m.leaving = time.Time{}
		return reconcile.Result{}, err
	}
	if m.leaving.IsZero() {
		m.leaving = time.Now()
	}
	waiting, err := cluster.removeCNI(ctx, m.leaving)
	if err != nil || waiting != "" {
		return reconcile.Result{RequeueAfter: lookAgain}, err
	}
	return reconcile.Result{}, m.guardNamespace(ctx)
}

// guardNamespace applies the namespace as it is without the CNI plugin's agent, for
// which its Pod Security was lowered.
func (m *Manager) guardNamespace(ctx context.Context) error {
	objects, err := m.objects(settings.Default(""), "")
	if err != nil {
		return err
	}
	return m.cluster().Apply(ctx, slices.DeleteFunc(objects, func(u *unstructured.Unstructured) bool { return u.GetKind() != "Namespace" }))
}

// withoutCNI returns the objects without the DaemonSet that must do its work before it
// is deleted.
func withoutCNI(objects []*unstructured.Unstructured) []*unstructured.Unstructured {
	return slices.DeleteFunc(slices.Clone(objects), func(u *unstructured.Unstructured) bool { return u.GetKind() == "DaemonSet" })
}

// rest labels what is there as in maintenance and touches nothing else.
func (m *Manager) rest(ctx context.Context) error {
	all, err := m.everything()
	if err != nil {
		return err
	}
	cluster := m.cluster()
	var errs []error
	for _, u := range all {
		now, err := cluster.get(ctx, u)
		if err == nil && now != nil && isOurs(now) && now.GetLabels()[maintenanceLabel] == "" {
			err = cluster.setMaintenance(ctx, now, true)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("label %s: %w", describe(u), err))
		}
	}
	return errors.Join(errs...)
}

// setMaintenance sets or removes the maintenance label and nothing else.
func (c *Cluster) setMaintenance(ctx context.Context, u *unstructured.Unstructured, on bool) error {
	value := "null"
	if on {
		value = strconv.Quote(v1alpha1.NoResourceReconciliation)
	}
	patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%s}}}`, maintenanceLabel, value)
	return c.Client.Patch(ctx, u, client.RawPatch(types.MergePatchType, []byte(patch)))
}

// answer writes what is to be said where the user looks for it.
func (m *Manager) answer(ctx context.Context, mc *v1alpha1.ModuleConfig, message string) error {
	status := v1alpha1.ModuleConfigStatus{Message: message, Version: strconv.Itoa(settings.LatestVersion)}
	if v := mc.Spec.Version; v >= settings.OldestVersion && v <= settings.LatestVersion {
		status.Version = strconv.Itoa(v)
	}
	foreign, err := m.underDeckhouse(ctx)
	if err != nil {
		return err
	}
	if foreign {
		u := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "v1",
			"kind":       "ConfigMap",
			"metadata": map[string]any{
				"name":      StatusConfigMap,
				"namespace": settings.ManagerNamespace,
				"labels":    map[string]any{partOfLabel: partOf},
			},
			"data": map[string]any{"version": status.Version, "message": status.Message},
		}}
		return m.cluster().Apply(ctx, []*unstructured.Unstructured{u})
	}
	if mc.Status == status {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"status": status})
	if err != nil {
		return fmt.Errorf("write the status as JSON: %w", err)
	}
	m.Log.LogAttrs(ctx, slog.LevelInfo, "status", slog.String("message", message))
	if err := m.Client.Status().Patch(ctx, mc, client.RawPatch(types.MergePatchType, patch)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("write the status of ModuleConfig %s: %w", mc.Name, err)
	}
	return nil
}

// StatusConfigMap holds version and message of the status, in the manager's
// namespace, on a cluster whose ModuleConfigs are Deckhouse's.
const StatusConfigMap = "podseal-status"

// underDeckhouse reports whether the ModuleConfig CRD is Deckhouse's.
func (m *Manager) underDeckhouse(ctx context.Context) (bool, error) {
	crd := &unstructured.Unstructured{}
	crd.SetAPIVersion("apiextensions.k8s.io/v1")
	crd.SetKind("CustomResourceDefinition")
	err := m.Client.Get(ctx, types.NamespacedName{Name: v1alpha1.ModuleConfigs + "." + v1alpha1.Group}, crd)
	if apierrors.IsNotFound(err) || meta.IsNoMatchError(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look whose the ModuleConfig CRD is: %w", err)
	}
	return crd.GetLabels()["heritage"] == "deckhouse", nil
}
