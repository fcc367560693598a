package install

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Owners of fields in server-side apply.
const (
	OwnerCLI     = "podseal"
	OwnerManager = "podseal-manager"
	// ownerCreate owns what is set once, when an object is created, and is
	// somebody else's business from then on.
	ownerCreate = "podseal-create"
)

// Result says what Apply did with an object.
type Result string

// What may become of an object.
const (
	Created    Result = "created"
	Configured Result = "configured"
	Unchanged  Result = "unchanged"
	// LeftAlone is a CRD that another product owns.
	LeftAlone Result = "left alone, another product owns it"
	Deleted   Result = "deleted"
)

// ErrForeign is an object of our name that somebody else made.
var ErrForeign = errors.New("exists and is not Podseal's")

// Cluster is a cluster that objects are applied to.
type Cluster struct {
	// Client reads the API server itself, not a cache.
	Client client.Client
	// Owner owns the fields that Apply sets: OwnerCLI or OwnerManager.
	Owner string
	// Force takes fields away from other owners; otherwise a conflict is an
	// error that names them.
	Force bool
	// Explain says in Pending why the pods of a Deployment don't run; it takes
	// the right to list pods.
	Explain bool
	// Report is told what became of each object. May be nil.
	Report func(object string, result Result)
}

func (c *Cluster) report(u *unstructured.Unstructured, r Result) {
	if c.Report != nil {
		c.Report(describe(u), r)
	}
}

// Apply makes the cluster agree with the objects, in their order. It may be
// repeated. It stops at the first object that fails. CRDs of others are left
// alone; any other object of others is ErrForeign.
func (c *Cluster) Apply(ctx context.Context, objects []*unstructured.Unstructured) error {
	for _, u := range objects {
		result, err := c.applyOne(ctx, u)
		if err != nil {
			return fmt.Errorf("apply %s: %w", describe(u), err)
		}
		c.report(u, result)
	}
	return nil
}

func (c *Cluster) applyOne(ctx context.Context, want *unstructured.Unstructured) (Result, error) {
	was, err := c.get(ctx, want)
	if err != nil {
		return "", err
	}
	if was != nil && !isOurs(was) && was.GetKind() != "Namespace" {
		if was.GetKind() == "CustomResourceDefinition" {
			return LeftAlone, nil
		}
		return "", ErrForeign
	}
	want = want.DeepCopy()
	if stripped, once := withoutSetOnce(want); once {
		if was == nil {
			if err := c.patch(ctx, want, ownerCreate); err != nil {
				return "", err
			}
		}
		want = stripped
	}
	if err := c.patch(ctx, want, c.Owner); err != nil {
		return "", err
	}
	if _, resting := want.GetLabels()[maintenanceLabel]; resting {
		if err := c.setMaintenance(ctx, want, false); err != nil {
			return "", err
		}
	}
	switch {
	case was == nil:
		return Created, nil
	case sameObject(was, want):
		return Unchanged, nil
	default:
		return Configured, nil
	}
}

// sameObject reports whether nothing was changed but what controllers write
// while one looks: the status, and the book-keeping of the API server.
func sameObject(a, b *unstructured.Unstructured) bool {
	if a.GetResourceVersion() == b.GetResourceVersion() {
		return true
	}
	bare := func(u *unstructured.Unstructured) map[string]any {
		u = u.DeepCopy()
		u.SetResourceVersion("")
		u.SetManagedFields(nil)
		u.SetGeneration(0)
		unstructured.RemoveNestedField(u.Object, "status")
		unstructured.RemoveNestedField(u.Object, "metadata", "annotations", "deployment.kubernetes.io/revision")
		return u.Object
	}
	return reflect.DeepEqual(bare(a), bare(b))
}

// withoutSetOnce returns a copy without the fields that are given at creation
// only, and whether there are any. The failurePolicy of the validator starts
// as Ignore, and the control plane makes it Fail once it answers (contract
// 1.36): were it applied again and again, it would be flipped back and forth.
func withoutSetOnce(u *unstructured.Unstructured) (*unstructured.Unstructured, bool) {
	if u.GetKind() != "ValidatingWebhookConfiguration" {
		return nil, false
	}
	u = u.DeepCopy()
	hooks, _, _ := unstructured.NestedSlice(u.Object, "webhooks")
	for _, hook := range hooks {
		if m, ok := hook.(map[string]any); ok {
			delete(m, "failurePolicy")
		}
	}
	u.Object["webhooks"] = hooks
	return u, true
}

func (c *Cluster) patch(ctx context.Context, u *unstructured.Unstructured, owner string) error {
	opts := []client.ApplyOption{client.FieldOwner(owner)}
	if c.Force {
		opts = append(opts, client.ForceOwnership)
	}
	err := c.Client.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), opts...)
	return explainConflict(err)
}

// explainConflict names the fields that others own and who they are.
func explainConflict(err error) error {
	var status apierrors.APIStatus
	if !apierrors.IsConflict(err) || !errors.As(err, &status) || status.Status().Details == nil {
		return err
	}
	var lines []string
	for _, cause := range status.Status().Details.Causes {
		if cause.Type == metav1.CauseTypeFieldManagerConflict {
			lines = append(lines, fmt.Sprintf("field %s: %s", cause.Field, cause.Message))
		}
	}
	if len(lines) == 0 {
		return err
	}
	return fmt.Errorf("somebody else has changed it; undo that or pass --force-conflicts to overwrite:\n  %s", strings.Join(lines, "\n  "))
}

// get returns the object as it is in the cluster, nil if it isn't there.
func (c *Cluster) get(ctx context.Context, u *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	was := &unstructured.Unstructured{}
	was.SetGroupVersionKind(u.GroupVersionKind())
	err := c.Client.Get(ctx, client.ObjectKeyFromObject(u), was)
	if apierrors.IsNotFound(err) || meta.IsNoMatchError(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return was, nil
}

// Delete removes the objects that are ours, webhooks first, the rest in
// reverse order. What isn't there or isn't ours is passed over. It goes on
// after a fault and joins all of them.
func (c *Cluster) Delete(ctx context.Context, objects []*unstructured.Unstructured) error {
	var errs []error
	for _, u := range deletionOrder(objects) {
		was, err := c.get(ctx, u)
		if err == nil && was != nil && isOurs(was) {
			err = client.IgnoreNotFound(c.Client.Delete(ctx, was, client.PropagationPolicy(metav1.DeletePropagationBackground)))
			if err == nil {
				c.report(u, Deleted)
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("delete %s: %w", describe(u), err))
		}
	}
	return errors.Join(errs...)
}

// Pending says what is still waited for, "" if nothing is.
type Pending func(ctx context.Context) (string, error)

// Pause between two looks, and the longest silence while waiting.
const (
	pollEvery  = 500 * time.Millisecond
	speakEvery = 30 * time.Second
)

// Wait returns when pending says that nothing is waited for any more, or with
// an error that says what was missing when the context ended. progress is told
// what is waited for and for how long at each change, and with an empty text,
// which means the same as before, after each half minute without one.
func Wait(ctx context.Context, pending Pending, progress func(text string, elapsed time.Duration)) error {
	start := time.Now()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	var said string
	spoke := start
	for {
		text, err := pending(ctx)
		if err == nil && text == "" {
			return nil
		}
		if err != nil {
			text = err.Error()
		}
		now := time.Now()
		switch {
		case ctx.Err() != nil:
		case text != said:
			progress(text, now.Sub(start))
			said, spoke = text, now
		case now.Sub(spoke) >= speakEvery:
			progress("", now.Sub(start))
			spoke = now
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("gave up after %s while waiting for %s: %w", time.Since(start).Round(time.Second), said, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// Pending says what the objects still lack: CRDs to be established,
// Deployments to be rolled out.
func (c *Cluster) Pending(objects []*unstructured.Unstructured) Pending {
	return func(ctx context.Context) (string, error) {
		for _, u := range objects {
			if !slices.Contains([]string{"CustomResourceDefinition", "Deployment"}, u.GetKind()) {
				continue
			}
			now, err := c.get(ctx, u)
			if err != nil {
				return "", fmt.Errorf("look at %s: %w", describe(u), err)
			}
			if text := notReady(now); text != "" {
				if c.Explain && text != notSeen {
					text += deploymentTrouble(ctx, c.Client, u)
				}
				return describe(u) + ": " + text, nil
			}
		}
		return "", nil
	}
}

// notSeen is said of a Deployment whose pods are still those of before.
const notSeen = "change not seen by the deployment controller"

// notReady says what a CRD or Deployment lacks, "" if nothing.
func notReady(u *unstructured.Unstructured) string {
	if u == nil {
		return "not there"
	}
	if u.GetKind() == "CustomResourceDefinition" {
		if condition(u, "Established") != "True" {
			return "not established"
		}
		return ""
	}
	number := func(path ...string) int64 {
		n, _, _ := unstructured.NestedInt64(u.Object, path...)
		return n
	}
	want := int64(1)
	if _, set, _ := unstructured.NestedInt64(u.Object, "spec", "replicas"); set {
		want = number("spec", "replicas")
	}
	updated, available := number("status", "updatedReplicas"), number("status", "availableReplicas")
	switch {
	case number("status", "observedGeneration") < u.GetGeneration():
		return notSeen
	case updated < want:
		return fmt.Sprintf("%d of %d replicas updated", updated, want)
	case number("status", "replicas") > updated:
		return "old replicas are ending"
	case available < want:
		return fmt.Sprintf("%d of %d replicas available", available, want)
	}
	return ""
}

// condition returns the status of a condition, "" if there is none.
func condition(u *unstructured.Unstructured, kind string) string {
	conditions, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	for _, c := range conditions {
		if m, ok := c.(map[string]any); ok && m["type"] == kind {
			status, _ := m["status"].(string)
			return status
		}
	}
	return ""
}
