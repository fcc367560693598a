package walkthrough

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// ImagesError names the images that nodes could not get.
type ImagesError struct {
	Missing []MissingImage
}

// MissingImage is an image that a node could not get, and why.
type MissingImage struct{ Node, Image, Reason string }

func (e *ImagesError) Error() string {
	var b strings.Builder
	b.WriteString("these nodes can't get these images:")
	for _, m := range e.Missing {
		fmt.Fprintf(&b, "\n  node %s: %s (%s)", m.Node, m.Image, m.Reason)
	}
	return b.String()
}

// TryImages starts a pod with all the images on every node that takes common pods,
// and returns an *ImagesError when a node can't get one. Nothing privileged runs.
func (e *Existing) TryImages(ctx context.Context, podseal, proxy string) error {
	err := e.apply(ctx, fmt.Sprintf(`apiVersion: apps/v1
kind: DaemonSet
metadata: {name: images, namespace: %[1]s, labels: {app: images}}
spec:
  selector: {matchLabels: {app: images}}
  template:
    metadata: {labels: {app: images}}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 0
      containers:
      - {name: podseal, image: %[2]q, args: [version, --client]}
      - {name: proxy, image: %[3]q, args: [version]}
      - {name: all-in-one, image: %[4]q, command: [sleep, infinity]}`, helperNamespace, podseal, proxy, e.Image))
	if err != nil {
		return fmt.Errorf("try the images: %w", err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 3*time.Minute, errors.New("not known within 3 minutes; kubectl -n "+helperNamespace+" get pods says more"))
	defer cancel()
	for {
		out, code, err := e.Shell(ctx, "kubectl -n "+helperNamespace+" get daemonsets,pods -l app=images -o json")
		if err != nil || code != 0 {
			return fmt.Errorf("try the images: %w", errors.Join(err, errors.New(strings.TrimSpace(out))))
		}
		missing, done, err := judgeImages([]byte(out))
		switch {
		case err != nil:
			return fmt.Errorf("try the images: %w", err)
		case done && len(missing) > 0:
			return &ImagesError{missing}
		case done:
			_, _, err := e.Shell(ctx, "kubectl -n "+helperNamespace+" delete daemonset images")
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("try the images: %w", context.Cause(ctx))
		case <-time.After(time.Second):
		}
	}
}

// list is what "kubectl get daemonsets,pods -o json" prints, as far as it is read here.
type list struct {
	Items []struct {
		Kind string
		Spec struct {
			NodeName   string
			Containers []struct{ Name, Image string }
		}
		Metadata struct{ Generation int64 }
		Status   struct {
			ObservedGeneration     int64
			DesiredNumberScheduled int
			ContainerStatuses      []containerStatus
		}
	}
}

type containerStatus struct {
	Name, ImageID string
	State         struct {
		Waiting struct{ Reason string }
	}
}

// judgeImages says which images could not be had, and whether that is known of
// every container of every pod.
func judgeImages(kubectl []byte) (missing []MissingImage, done bool, err error) {
	var l list
	if err := json.Unmarshal(kubectl, &l); err != nil {
		return nil, false, fmt.Errorf("read what kubectl says: %w", err)
	}
	pods, open, counted := 0, 0, false
	for _, item := range l.Items {
		if item.Kind == "DaemonSet" {
			if item.Status.DesiredNumberScheduled == 0 || item.Status.ObservedGeneration != item.Metadata.Generation {
				open++
			}
			pods, counted = pods-item.Status.DesiredNumberScheduled, true
			continue
		}
		pods++
		for _, c := range item.Spec.Containers {
			i := slices.IndexFunc(item.Status.ContainerStatuses, func(s containerStatus) bool { return s.Name == c.Name })
			switch {
			case i < 0:
				open++
			case slices.Contains([]string{"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"}, item.Status.ContainerStatuses[i].State.Waiting.Reason):
				missing = append(missing, MissingImage{item.Spec.NodeName, c.Image, item.Status.ContainerStatuses[i].State.Waiting.Reason})
			case item.Status.ContainerStatuses[i].ImageID == "":
				open++
			}
		}
	}
	return missing, counted && pods == 0 && open == 0, nil
}
