package controlplane

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"podseal.io/podseal/internal/discovery"
)

// conditionAccepted says whether a policy, as it is now, is in force.
const conditionAccepted = "Accepted"

// statusEvery is how often status may be written: counts of workloads change with
// every pod, and nobody reads that fast.
const statusEvery = 2 * time.Second

// statusWriter tells the authors of policies what became of them.
type statusWriter struct {
	client   client.Client
	verdicts <-chan discovery.Verdicts
	now      func() time.Time
	log      *slog.Logger
}

// Run works until the context ends. What can't be written is tried again.
func (s *statusWriter) Run(ctx context.Context) error {
	var verdicts discovery.Verdicts
	for {
		select {
		case <-ctx.Done():
			return nil
		case verdicts = <-s.verdicts:
		}
		for !s.writeAll(ctx, verdicts) {
			if !sleep(ctx, statusEvery) {
				return nil
			}
			select {
			case verdicts = <-s.verdicts: // newer ones
			default:
			}
		}
		if !sleep(ctx, statusEvery) {
			return nil
		}
	}
}

// writeAll reports whether every policy has its status.
func (s *statusWriter) writeAll(ctx context.Context, verdicts discovery.Verdicts) bool {
	done := true
	for key, v := range verdicts {
		if newPolicy(key.Kind) == nil {
			continue
		}
		if err := s.write(ctx, key, v); err != nil {
			done = false
			s.log.Warn("status not written", slog.String("object", key.String()), slog.String("error", err.Error()))
		}
	}
	return done
}

// write sets the condition of one policy, if it says something else now.
func (s *statusWriter) write(ctx context.Context, key discovery.Key, v discovery.Verdict) error {
	obj := newPolicy(key.Kind)
	err := s.client.Get(ctx, types.NamespacedName{Namespace: key.Namespace, Name: key.Name}, obj)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	conditions, changed := withCondition(obj, v, s.now())
	if !changed {
		return nil
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": obj.GetResourceVersion()},
		"status":   map[string]any{"conditions": conditions},
	})
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	err = s.client.Status().Patch(ctx, obj, client.RawPatch(types.MergePatchType, patch), fieldOwner)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("patch: %w", err)
	}
	return nil
}

// withCondition returns the conditions that a policy should have, those of
// others among them, and whether they differ from what it has.
func withCondition(obj *unstructured.Unstructured, v discovery.Verdict, now time.Time) ([]any, bool) {
	status := "False"
	if v.Accepted {
		status = "True"
	}
	next := map[string]any{
		"type": conditionAccepted, "status": status, "reason": v.Reason, "message": v.Message,
		"lastTransitionTime": now.UTC().Format(time.RFC3339),
	}
	generation := obj.GetGeneration()
	if generation > 0 {
		next["observedGeneration"] = generation
	}
	have, _, err := unstructured.NestedSlice(obj.Object, "status", "conditions")
	if err != nil {
		have = nil // not a list: replaced
	}
	out := make([]any, 0, len(have)+1)
	for _, c := range have {
		old, ok := c.(map[string]any)
		if !ok || old["type"] != conditionAccepted {
			out = append(out, c)
			continue
		}
		if old["status"] == status && old["reason"] == v.Reason && old["message"] == v.Message && (generation == 0 || old["observedGeneration"] == generation) {
			return nil, false
		}
		if old["status"] == status && old["lastTransitionTime"] != nil {
			next["lastTransitionTime"] = old["lastTransitionTime"]
		}
	}
	return append(out, next), true
}
