package controlplane

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"podseal.io/podseal/internal/discovery"
)

// The conditions of policies. Accepted says whether the object, as it is now, is
// valid and not passed over; Enforced whether the proxies that it is for have
// acknowledged it; CallersReady, of one with STRICT, whether it refuses somebody; Matched
// when what it says last mattered.
const (
	conditionAccepted     = "Accepted"
	conditionEnforced     = "Enforced"
	conditionCallersReady = "CallersReady"
	conditionMatched      = "Matched"
)

// statusEvery is how often status is compared with what it should be, and
// statusAgain how long after a write an object that nobody has changed may be written
// again: counts change with every pod, and nobody reads that fast.
const (
	statusEvery = 2 * time.Second
	statusAgain = 10 * time.Second
)

// maxStatusWrites is how many objects are written each time.
const maxStatusWrites = 20

// condition is one of an object.
type condition struct {
	kind, status, reason, message string
}

// statusOf is the status of a condition.
func statusOf(b bool) string {
	if b {
		return "True"
	}
	return "False"
}

// statusWriter tells the authors of policies what became of them.
type statusWriter struct {
	client   client.Client
	verdicts <-chan discovery.Verdicts
	// more are further conditions of each object, as they are now; nil without any.
	more    func(ctx context.Context, verdicts discovery.Verdicts) map[discovery.Key][]condition
	events  events.EventRecorder // may be nil
	now     func() time.Time
	log     *slog.Logger
	written map[discovery.Key]writing
}

// writing is when an object was written, and which generation of it.
type writing struct {
	at         time.Time
	generation int64
}

// Run works until the context ends. What can't be written is tried again.
func (s *statusWriter) Run(ctx context.Context) error {
	s.written = map[discovery.Key]writing{}
	var verdicts discovery.Verdicts
	select {
	case <-ctx.Done():
		return nil
	case verdicts = <-s.verdicts:
	}
	for {
		s.writeAll(ctx, verdicts)
		if !sleep(ctx, statusEvery) {
			return nil
		}
		select {
		case verdicts = <-s.verdicts: // newer ones
		default:
		}
	}
}

// writeAll gives every policy its status, but for those that were written a moment ago.
func (s *statusWriter) writeAll(ctx context.Context, verdicts discovery.Verdicts) {
	var more map[discovery.Key][]condition
	if s.more != nil {
		more = s.more(ctx, verdicts)
	}
	writes := 0
	for key, v := range verdicts {
		if newPolicy(key.Kind) == nil {
			continue
		}
		if writes >= maxStatusWrites {
			break
		}
		wrote, err := s.write(ctx, key, append([]condition{{conditionAccepted, statusOf(v.Accepted), v.Reason, v.Message}}, more[key]...))
		if wrote {
			writes++
		}
		if err != nil && ctx.Err() == nil {
			s.log.Warn("status not written", slog.String("object", key.String()), slog.String("error", err.Error()))
		}
	}
	for key := range s.written {
		if _, here := verdicts[key]; !here {
			delete(s.written, key)
		}
	}
}

// write sets the conditions of one policy, if they say something else now, and
// reports whether it did.
func (s *statusWriter) write(ctx context.Context, key discovery.Key, next []condition) (bool, error) {
	obj := newPolicy(key.Kind)
	err := s.client.Get(ctx, types.NamespacedName{Namespace: key.Namespace, Name: key.Name}, obj)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read: %w", err)
	}
	last, generation := s.written[key], obj.GetGeneration()
	conditions, changed := withConditions(obj, next, s.now())
	if !changed || (last.generation == generation && s.now().Sub(last.at) < statusAgain) {
		return false, nil
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": obj.GetResourceVersion()},
		"status":   map[string]any{"conditions": conditions},
	})
	if err != nil {
		return false, fmt.Errorf("encode: %w", err)
	}
	news := turned(obj, next) // the patch changes obj
	err = s.client.Status().Patch(ctx, obj, client.RawPatch(types.MergePatchType, patch), fieldOwner)
	switch {
	case apierrors.IsConflict(err): // our cache is behind: the next time
		return false, nil
	case client.IgnoreNotFound(err) != nil:
		return false, fmt.Errorf("patch: %w", err)
	}
	s.written[key] = writing{s.now(), generation}
	for _, c := range news {
		if s.events != nil {
			s.events.Eventf(obj, nil, corev1.EventTypeWarning, c.reason, "Enforce", "%s", truncate(c.message))
		}
	}
	return true, nil
}

// toActOn are the reasons that an author should hear of without asking.
var toActOn = []string{discovery.ReasonInvalid, discovery.ReasonShadowed, discovery.ReasonNoEffect, discovery.ReasonNoProvider, reasonRejected, reasonBroken}

// turned are the conditions that say now, and didn't before, that something is to
// be done: each of them is one Event.
func turned(before *unstructured.Unstructured, next []condition) []condition {
	said := map[string]bool{}
	have, _, err := unstructured.NestedSlice(before.Object, "status", "conditions")
	if err == nil {
		for _, c := range have {
			old, _ := c.(map[string]any)
			reason, _ := old["reason"].(string)
			said[reason] = true
		}
	}
	var out []condition
	for _, c := range next {
		if c.status == "False" && slices.Contains(toActOn, c.reason) && !said[c.reason] {
			said[c.reason] = true
			out = append(out, c)
		}
	}
	return out
}

// withConditions returns the conditions that a policy should have, those of
// others among them, and whether they differ from what it has. Of ours, those that
// next doesn't have are taken away.
func withConditions(obj *unstructured.Unstructured, next []condition, now time.Time) (out []any, changed bool) {
	have, _, err := unstructured.NestedSlice(obj.Object, "status", "conditions")
	if err != nil {
		have = nil // not a list: replaced
	}
	before := map[string]map[string]any{}
	for _, c := range have {
		old, ok := c.(map[string]any)
		kind, _ := old["type"].(string)
		switch kind {
		case conditionAccepted, conditionEnforced, conditionCallersReady, conditionMatched:
			before[kind] = old
		default:
			if ok {
				out = append(out, c)
			}
		}
	}
	changed = len(before) != len(next)
	for _, c := range next {
		said, _ := before[c.kind]["message"].(string)
		value, same := c.after(said).over(before[c.kind], obj.GetGeneration(), now)
		changed = changed || !same
		out = append(out, value)
	}
	return out, changed
}

// over is the condition as it is written, in the place of an old one, and whether
// they are the same.
func (c condition) over(old map[string]any, generation int64, now time.Time) (value map[string]any, same bool) {
	value = map[string]any{
		"type": c.kind, "status": c.status, "reason": c.reason, "message": c.message, "lastTransitionTime": now.UTC().Format(time.RFC3339),
	}
	if generation > 0 {
		value["observedGeneration"] = generation
	}
	if old["status"] == c.status && old["lastTransitionTime"] != nil {
		value["lastTransitionTime"] = old["lastTransitionTime"]
	}
	same = old != nil && old["status"] == c.status && old["reason"] == c.reason && old["message"] == c.message && (generation == 0 || old["observedGeneration"] == generation)
	return value, same
}
