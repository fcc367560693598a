package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"podseal.io/podseal/internal/proof"
)

// How long the container that observes may take to start, and to say what it saw.
const (
	observeStart = 2 * time.Minute
	observeTell  = time.Minute
)

// maxObservation bounds what a container tells, in bytes.
const maxObservation = 64 << 20

// observation is where and how to look.
type observation struct {
	client   client.Client
	config   *rest.Config
	image    string // "" is that of the pod's own proxy
	length   time.Duration
	progress func(text string)
	// attachTo is how to talk to a container; nil is the API server's way.
	attachTo func(pod *corev1.Pod, container string) (remotecommand.Executor, error)
}

// observe looks at the network of a pod, from a container that is added to it and
// ends by itself. The packets go to pcap, if it isn't nil.
func (o *observation) observe(ctx context.Context, pod *corev1.Pod, pcap io.Writer) (*proof.Observation, error) {
	image := o.image
	if image == "" {
		image = proxyImage(pod)
	}
	if image == "" {
		return nil, usageError{errors.New("the pod has no proxy whose image could be used: name one with --image")}
	}
	name := "podseal-verify-" + strings.ToLower(rand.Text()[:6])
	if err := o.add(ctx, pod, name, image, pcap != nil); err != nil {
		return nil, err
	}
	if err := o.running(ctx, pod, name); err != nil {
		return nil, err
	}
	return o.attach(ctx, pod, name, pcap)
}

func proxyImage(pod *corev1.Pod) string {
	for _, c := range slices.Concat(pod.Spec.Containers, pod.Spec.InitContainers) {
		if c.Name == "istio-proxy" {
			return c.Image
		}
	}
	return ""
}

// add puts the container into the pod. It has the one capability that capturing
// takes, and ends when whoever is attached goes away.
func (o *observation) add(ctx context.Context, pod *corev1.Pod, name, image string, pcap bool) error {
	command := []string{"podseal-proxy", "observe", "-for", o.length.String()}
	if pcap {
		command = append(command, "-pcap")
	}
	pod.Spec.EphemeralContainers = append(pod.Spec.EphemeralContainers, corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
		Name: name, Image: image, Command: command, Stdin: true, StdinOnce: true, TerminationMessagePolicy: corev1.TerminationMessageReadFile,
		SecurityContext: &corev1.SecurityContext{
			RunAsUser: new(int64(0)), RunAsGroup: new(int64(0)), RunAsNonRoot: new(false), Privileged: new(false), AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true),
			Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"NET_RAW"}},
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
	}})
	err := o.client.SubResource("ephemeralcontainers").Update(ctx, pod)
	switch {
	case err == nil:
		return nil
	case apierrors.IsForbidden(err) && strings.Contains(err.Error(), "PodSecurity"):
		return codedError{fmt.Errorf("add a container that captures: %w\n"+
			"Pod Security lets no container of namespace %[2]s capture, whoever asks. There are two ways out:\n"+
			"  verify the other end of its connections, in a namespace that lets you: the same bytes are on the wire there\n"+
			"  let the namespace do so while you look: kubectl label namespace %[2]s --overwrite pod-security.kubernetes.io/enforce=privileged, and then set it back", err, pod.Namespace), exitPodSecurity}
	case apierrors.IsForbidden(err):
		return codedError{fmt.Errorf("add a container that captures: %w\nIt takes the right to update pods/ephemeralcontainers and to create pods/attach in namespace %s", err, pod.Namespace), exitNoPermission}
	default:
		return fmt.Errorf("add a container that captures: %w", err)
	}
}

// hopeless are the reasons for waiting that time doesn't heal.
var hopeless = map[string]bool{
	"RunContainerError": true, "CreateContainerError": true, "CreateContainerConfigError": true, "InvalidImageName": true, "ErrImageNeverPull": true, "ImagePullBackOff": true,
}

// running waits until the container runs.
func (o *observation) running(ctx context.Context, pod *corev1.Pod, name string) error {
	ctx, cancel := context.WithTimeout(ctx, observeStart)
	defer cancel()
	began, told := time.Now(), false
	for {
		var now corev1.Pod
		switch err := o.client.Get(ctx, client.ObjectKeyFromObject(pod), &now); {
		case apierrors.IsNotFound(err):
			return codedError{fmt.Errorf("the pod went away before it could be observed: %w", err), exitNoInput}
		case err != nil && ctx.Err() == nil:
			return fmt.Errorf("wait for the container that captures: %w", err)
		}
		why := "it has not been started"
		for _, c := range now.Status.EphemeralContainerStatuses {
			switch {
			case c.Name != name:
			case c.State.Running != nil:
				return nil
			case c.State.Terminated != nil:
				return fmt.Errorf("the container that captures ended with code %d: %s", c.State.Terminated.ExitCode, c.State.Terminated.Message)
			case c.State.Waiting != nil && c.State.Waiting.Reason != "":
				why = strings.TrimSpace(c.State.Waiting.Reason + " " + c.State.Waiting.Message)
				if hopeless[c.State.Waiting.Reason] {
					return fmt.Errorf("container %s can't start: %s", name, why)
				}
			}
		}
		if !told && time.Since(began) > 2*time.Second {
			told = true
			o.progress(fmt.Sprintf("waiting for container %s in pod %s/%s", name, pod.Namespace, pod.Name))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("container %s does not start: %s", name, why)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// attach lets the container begin, and reads what it tells.
func (o *observation) attach(ctx context.Context, pod *corev1.Pod, name string, pcap io.Writer) (*proof.Observation, error) {
	ctx, cancel := context.WithTimeout(ctx, o.length+observeTell)
	defer cancel()
	attachTo := o.attachTo
	if attachTo == nil {
		attachTo = o.executor
	}
	exec, err := attachTo(pod, name)
	if err != nil {
		return nil, err
	}
	stdin, begin := io.Pipe()
	defer func() { _ = begin.Close() }() // it returns nil
	go func() {
		_, _ = begin.Write([]byte("\n")) // it stays open: the container ends when it closes
	}()
	if pcap == nil {
		pcap = io.Discard
	}
	told, packets := &bounded{limit: maxObservation}, &failing{w: pcap}
	o.progress(fmt.Sprintf("observing pod %s/%s for %s", pod.Namespace, pod.Name, o.length))
	if err := exec.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: stdin, Stdout: packets, Stderr: told}); err != nil {
		if apierrors.IsForbidden(err) || strings.Contains(err.Error(), "is forbidden") {
			return nil, codedError{fmt.Errorf("attach to container %s: %w\nIt takes the right to create pods/attach in namespace %s", name, err, pod.Namespace), exitNoPermission}
		}
		return nil, lookError("attach to container "+name, err)
	}
	if packets.err != nil { // of which the stream doesn't tell
		return nil, codedError{fmt.Errorf("write the packets: %w", packets.err), exitBadInput}
	}
	text := bytes.TrimSpace(told.Bytes())
	at := bytes.LastIndexByte(text, '\n') + 1
	seen := &proof.Observation{}
	if err := json.Unmarshal(text[at:], seen); err != nil {
		return nil, fmt.Errorf("container %s said no more than: %s", name, bytes.TrimSpace(text[:min(len(text), 1<<10)]))
	}
	return seen, nil
}

func (o *observation) executor(pod *corev1.Pod, name string) (remotecommand.Executor, error) {
	cfg := rest.CopyConfig(o.config)
	cfg.Timeout = 0
	cfg.APIPath, cfg.GroupVersion, cfg.NegotiatedSerializer = "/api", &schema.GroupVersion{Version: "v1"}, scheme.Codecs.WithoutConversion()
	api, err := rest.RESTClientFor(cfg)
	if err != nil {
		return nil, err
	}
	target := api.Post().Resource("pods").Namespace(pod.Namespace).Name(pod.Name).SubResource("attach").
		VersionedParams(&corev1.PodAttachOptions{Container: name, Stdin: true, Stdout: true, Stderr: true}, scheme.ParameterCodec).URL()
	spdy, err := remotecommand.NewSPDYExecutor(cfg, "POST", target)
	if err != nil {
		return nil, err
	}
	websocket, err := remotecommand.NewWebSocketExecutor(cfg, "GET", target.String())
	if err != nil {
		return nil, err
	}
	return remotecommand.NewFallbackExecutor(websocket, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
}

// failing remembers why something could not be written. What comes after is not
// written either: a hole in a capture would look like nothing.
type failing struct {
	w   io.Writer
	err error
}

func (f *failing) Write(p []byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	n, err := f.w.Write(p)
	f.err = err
	return n, err
}

// bounded keeps so many bytes and then fails.
type bounded struct {
	bytes.Buffer
	limit int
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > b.limit {
		return 0, errors.New("more than was bargained for")
	}
	return b.Buffer.Write(p)
}
