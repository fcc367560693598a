package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"podseal.io/podseal/internal/strict"
)

// enforcer makes something STRICT and watches what becomes of it.
type enforcer struct {
	*strictOptions
	streams
	looker *looker
	target target
	hooks  map[string]bool
	done   []applied
}

// applied is an object that was made or changed, and what it was before.
type applied struct {
	now    *unstructured.Unstructured
	before *unstructured.Unstructured // nil: it wasn't there
}

const strictOwner = client.FieldOwner("podseal-strict")

func peerAuthentication() *unstructured.Unstructured {
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(schema.GroupVersionKind{Group: "security.istio.io", Version: "v1", Kind: "PeerAuthentication"})
	return u
}

func (e *enforcer) run(ctx context.Context, in *strict.Input, before *strict.Report) error {
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(peerAuthentication().GroupVersionKind().GroupVersion().WithKind("PeerAuthenticationList"))
	if err := e.looker.client.List(ctx, list, client.InNamespace(e.target.namespace)); err != nil {
		return lookError("list PeerAuthentications", err)
	}
	changes, notes, err := strict.Plan(before, in, e.target.namespace, e.target.workload, policiesOf(list))
	if err != nil {
		return err
	}
	for _, n := range notes {
		e.looker.note(n)
	}
	objects := make([]applied, 0, len(changes))
	for i := range changes {
		a, err := changed(&changes[i], list)
		if err != nil {
			return err
		}
		objects = append(objects, a)
	}
	for i := range objects {
		if err := e.try(ctx, &changes[i], objects[i]); err != nil {
			return err
		}
	}
	if e.dryRun {
		fmt.Fprintln(e.err, "Nothing was changed: it was a dry run.")
		return nil
	}
	for _, a := range objects {
		if err := e.write(ctx, a.now, a.before == nil); err != nil {
			return errors.Join(fmt.Errorf("make %s STRICT: %w", e.target, err), e.undo("it could not be made whole"))
		}
		e.done = append(e.done, a)
	}
	fmt.Fprintf(e.err, "%s is STRICT. Refusals are watched for %s.\n", e.target, e.watchFor)
	return e.guard(ctx, before)
}

// try shows what the API server would make of an object.
func (e *enforcer) try(ctx context.Context, c *strict.Change, a applied) error {
	verb, would := "change", a.now.DeepCopy()
	if a.before == nil {
		verb = "create"
	}
	if err := e.write(ctx, would, a.before == nil, client.DryRunAll); err != nil {
		return fmt.Errorf("dry run of PeerAuthentication %s/%s: %w", c.Namespace, c.Name, err)
	}
	spec, err := yaml.Marshal(map[string]any{"spec": would.Object["spec"]})
	if err != nil {
		return err
	}
	fmt.Fprintf(e.err, "%s PeerAuthentication %s/%s: %s\n  %s\n", verb, c.Namespace, c.Name, c.Why, strings.ReplaceAll(strings.TrimSpace(string(spec)), "\n", "\n  "))
	return nil
}

func (e *enforcer) write(ctx context.Context, obj *unstructured.Unstructured, create bool, opts ...client.CreateOption) error {
	if create {
		return e.looker.client.Create(ctx, obj, append(opts, strictOwner)...)
	}
	var update []client.UpdateOption
	if len(opts) > 0 {
		update = append(update, client.DryRunAll)
	}
	return e.looker.client.Update(ctx, obj, append(update, strictOwner)...)
}

// guard watches until the time is up, and undoes all when somebody is refused who
// was fine before.
func (e *enforcer) guard(ctx context.Context, before *strict.Report) error {
	ticker := time.NewTicker(e.poll)
	defer ticker.Stop()
	end, blind := time.Now().Add(e.watchFor), time.Time{}
	for time.Now().Before(end) {
		select {
		case <-ctx.Done():
			return codedError{fmt.Errorf("interrupted: %s stays STRICT, and nobody watches it. To undo it: %s", e.target, e.howToUndo()), exitFailed}
		case <-ticker.C:
		}
		_, now, err := e.judge(ctx, e.looker, e.target, e.hooks)
		switch {
		case err != nil && ctx.Err() == nil:
			if blind.IsZero() {
				blind = time.Now()
			}
			if time.Since(blind) > e.grace {
				return errors.Join(fmt.Errorf("nobody can tell who is refused: %w", err), e.undo("it could not be watched"))
			}
			continue
		case err != nil:
			continue
		}
		blind = time.Time{}
		fine, unseen := strict.Refused(before, now)
		for i := range unseen {
			e.looker.note(fmt.Sprintf("%s is refused, and was not seen before: %s", unseen[i].Name(), unseen[i].Needs))
		}
		if len(fine) > 0 {
			var who []string
			for i := range fine {
				who = append(who, fine[i].Name()+" ("+fine[i].Needs+")")
			}
			slices.Sort(who)
			return errors.Join(codedError{fmt.Errorf("refused, and fine before: %s", strings.Join(slices.Compact(who), "; ")), exitFailed}, e.undo("somebody was refused who was fine before"))
		}
	}
	fmt.Fprintf(e.err, "%s is STRICT. Nobody was refused who was fine before.\n", e.target)
	return nil
}

// undoTime is how long undoing may take, also when the command was interrupted.
const undoTime = 30 * time.Second

// undo makes every object what it was, unless somebody else has changed it since.
func (e *enforcer) undo(because string) error {
	ctx, cancel := context.WithTimeout(context.Background(), undoTime)
	defer cancel()
	var failed []error
	for _, a := range slices.Backward(e.done) {
		name := a.now.GetNamespace() + "/" + a.now.GetName()
		// our own control plane writes the status meanwhile
		if err := retry.RetryOnConflict(retry.DefaultBackoff, func() error { return e.restore(ctx, a) }); err != nil {
			failed = append(failed, fmt.Errorf("PeerAuthentication %s is not undone: %w", name, err))
			continue
		}
		fmt.Fprintf(e.err, "PeerAuthentication %s is as it was: %s.\n", name, because)
	}
	return errors.Join(failed...)
}

func (e *enforcer) restore(ctx context.Context, a applied) error {
	live := peerAuthentication()
	if err := e.looker.client.Get(ctx, client.ObjectKeyFromObject(a.now), live); err != nil {
		if apierrors.IsNotFound(err) && a.before == nil {
			return nil
		}
		return err
	}
	if live.GetUID() != a.now.GetUID() || live.GetGeneration() != a.now.GetGeneration() {
		return errors.New("somebody else has changed it meanwhile")
	}
	if a.before == nil {
		uid, version := live.GetUID(), live.GetResourceVersion()
		return e.looker.client.Delete(ctx, live, client.Preconditions{UID: &uid, ResourceVersion: &version})
	}
	live.Object["spec"] = a.before.Object["spec"]
	return e.looker.client.Update(ctx, live, strictOwner)
}

func (e *enforcer) howToUndo() string {
	var how []string
	for _, a := range e.done {
		if a.before == nil {
			how = append(how, fmt.Sprintf("kubectl -n %s delete peerauthentication %s", a.now.GetNamespace(), a.now.GetName()))
		} else {
			how = append(how, fmt.Sprintf("kubectl -n %s edit peerauthentication %s", a.now.GetNamespace(), a.now.GetName()))
		}
	}
	return strings.Join(how, "; ")
}

// changed is the object that a change makes.
func changed(c *strict.Change, list *unstructured.UnstructuredList) (applied, error) {
	a := applied{now: peerAuthentication()}
	a.now.SetNamespace(c.Namespace)
	a.now.SetName(c.Name)
	if c.Exists {
		i := slices.IndexFunc(list.Items, func(u unstructured.Unstructured) bool { return u.GetName() == c.Name })
		if i < 0 {
			return a, fmt.Errorf("PeerAuthentication %s/%s is gone", c.Namespace, c.Name)
		}
		a.before, a.now = &list.Items[i], list.Items[i].DeepCopy()
	} else if len(c.Selector) > 0 {
		labels := map[string]any{}
		for k, v := range c.Selector {
			labels[k] = v
		}
		if err := unstructured.SetNestedMap(a.now.Object, labels, "spec", "selector", "matchLabels"); err != nil {
			return a, err
		}
	}
	err := unstructured.SetNestedField(a.now.Object, "STRICT", "spec", "mtls", "mode")
	for port, mode := range c.Ports {
		err = errors.Join(err, unstructured.SetNestedField(a.now.Object, mode, "spec", "portLevelMtls", strconv.Itoa(int(port)), "mode"))
	}
	return a, err
}

// policiesOf reads what a plan needs to know of the objects that are there.
func policiesOf(list *unstructured.UnstructuredList) []strict.Policy {
	out := make([]strict.Policy, 0, len(list.Items))
	for i := range list.Items {
		u := &list.Items[i]
		p := strict.Policy{Name: u.GetName(), Created: u.GetCreationTimestamp().Time, Ports: map[uint16]string{}}
		// what has another shape is refused by the API server
		p.Selector, _, _ = unstructured.NestedStringMap(u.Object, "spec", "selector", "matchLabels")
		p.Mode, _, _ = unstructured.NestedString(u.Object, "spec", "mtls", "mode")
		out = append(out, p)
	}
	return out
}
