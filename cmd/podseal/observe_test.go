package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/remotecommand"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"podseal.io/podseal/internal/proof"
)

// attached is a container that says what it is told to, and how that ends.
type attached struct {
	stdout, stderr string
	err            error
	wait           bool // it never ends by itself
}

func (a attached) Stream(o remotecommand.StreamOptions) error {
	return a.StreamWithContext(context.Background(), o)
}

// StreamWithContext passes on what is said and, as the real one, no error of writing it.
func (a attached) StreamWithContext(ctx context.Context, o remotecommand.StreamOptions) error {
	first := make([]byte, 1)
	if _, err := io.ReadFull(o.Stdin, first); err != nil {
		return err
	}
	_, _ = io.Copy(o.Stdout, strings.NewReader(a.stdout))
	_, _ = io.Copy(o.Stderr, strings.NewReader(a.stderr))
	if a.wait {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	return a.err
}

// cluster is an API server with one pod, whose container for observing comes to be in
// a state, or fails to.
func cluster(t *testing.T, state corev1.ContainerState, refusal error, gone bool) (client.Client, *corev1.Pod) {
	t.Helper()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web-1"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "istio-proxy", Image: "proxy"}}}}
	added := ""
	c := interceptor.NewClient(fake.NewClientBuilder().WithObjects(pod.DeepCopy()).Build(), interceptor.Funcs{
		SubResourceUpdate: func(_ context.Context, _ client.Client, _ string, obj client.Object, _ ...client.SubResourceUpdateOption) error {
			added = obj.(*corev1.Pod).Spec.EphemeralContainers[0].Name
			return refusal
		},
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
			if gone {
				return apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, key.Name)
			}
			if err := c.Get(ctx, key, obj, opts...); err != nil {
				return err
			}
			obj.(*corev1.Pod).Status.EphemeralContainerStatuses = []corev1.ContainerStatus{{Name: added, State: state}}
			return nil
		},
	})
	return c, pod
}

// Whatever goes wrong while a pod is observed is an error that says so, with its own
// exit code, and never looks like a quiet wire.
func TestObservationFails(t *testing.T) {
	whole, err := json.Marshal(proof.Observation{Packets: 7})
	if err != nil {
		t.Fatal(err)
	}
	forbidden := func(why string) error {
		return apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, "web-1", errors.New(why))
	}
	running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for name, tt := range map[string]struct {
		state    corev1.ContainerState
		refusal  error
		gone     bool
		says     attached
		noAttach error
		pcap     io.Writer
		want     string // in the error; "" is none
		code     int
	}{
		"it works":                     {state: running, says: attached{stderr: "some log\n" + string(whole) + "\n"}, pcap: &bytes.Buffer{}},
		"Pod Security forbids it":      {refusal: forbidden(`violates PodSecurity "restricted:latest"`), want: "two ways out", code: exitPodSecurity},
		"no right to add a container":  {refusal: forbidden("jane can't"), want: "pods/ephemeralcontainers", code: exitNoPermission},
		"the pod has gone":             {gone: true, want: "went away", code: exitNoInput},
		"it ends before it can look":   {state: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 1, Message: "no capability"}}, want: "ended with code 1: no capability"},
		"its image can't be had":       {state: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff"}}, want: "can't start: ImagePullBackOff"},
		"no right to attach":           {state: running, noAttach: forbidden("jane can't"), want: "to create pods/attach", code: exitNoPermission},
		"attaching fails":              {state: running, says: attached{err: errors.New("connection refused")}, want: "attach to container", code: exitUnavailable},
		"it breaks off":                {state: running, says: attached{stderr: string(whole[:len(whole)/2]), err: io.ErrUnexpectedEOF}, want: "unexpected EOF", code: exitUnavailable},
		"the pod goes away meanwhile":  {state: running, says: attached{wait: true}, want: "deadline", code: exitUnavailable},
		"it says only half":            {state: running, says: attached{stderr: string(whole[:len(whole)/2])}, want: "said no more than"},
		"it says nothing":              {state: running, want: "said no more than"},
		"it says garbage":              {state: running, says: attached{stderr: "\x00\xff\n[1,2"}, want: "said no more than"},
		"it says something else":       {state: running, says: attached{stderr: `"well"`}, want: "said no more than"},
		"it says too much":             {state: running, says: attached{stderr: strings.Repeat("x", maxObservation+1)}, want: "said no more than"},
		"the packets can't be written": {state: running, says: attached{stdout: "packets", stderr: string(whole)}, pcap: full, want: "write the packets", code: exitBadInput},
	} {
		t.Run(name, func(t *testing.T) {
			c, pod := cluster(t, tt.state, tt.refusal, tt.gone)
			o := observation{client: c, length: 10 * time.Millisecond, progress: func(string) {}, attachTo: func(*corev1.Pod, string) (remotecommand.Executor, error) {
				if tt.noAttach != nil {
					return attached{err: tt.noAttach}, nil
				}
				return tt.says, nil
			}}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if tt.says.wait {
				ctx, cancel = context.WithTimeoutCause(ctx, 50*time.Millisecond, context.DeadlineExceeded)
				defer cancel()
			}
			seen, err := o.observe(ctx, pod, tt.pcap)
			if tt.want == "" {
				if err != nil || seen.Packets != 7 {
					t.Errorf("%+v, %v", seen, err)
				}
				return
			}
			var coded codedError
			if err == nil || !strings.Contains(err.Error(), tt.want) || tt.code != 0 && (!asCoded(err, &coded) || coded.code != tt.code) {
				t.Errorf("%v (code %d), want %q, %d", err, coded.code, tt.want, tt.code)
			}
		})
	}
}

// A file for packets that can't be made is said before anything is captured.
func TestPcapFile(t *testing.T) {
	for name, o := range map[string]verifyOptions{"no such folder": {pcap: t.TempDir() + "/no/web.pcap"}, "a folder": {pcap: t.TempDir()}} {
		var coded codedError
		if f, err := o.openPcap(nil); f != nil || !asCoded(err, &coded) || coded.code != exitBadInput {
			t.Errorf("%s: %v, %v", name, f, err)
		}
	}
}

// The exit code tells what was found first, and then why somebody was not observed.
func TestVerdictCodes(t *testing.T) {
	refused := verified{Error: "Pod Security", Result: "not observed", code: exitPodSecurity}
	for name, tt := range map[string]struct {
		all  []verified
		code int
	}{
		"well":                    {[]verified{{Result: "agrees"}}, 0},
		"not observed":            {[]verified{{Result: "agrees"}, refused}, exitPodSecurity},
		"for another reason":      {[]verified{{Error: "no", Result: "not observed"}}, exitFailed},
		"a leak besides":          {[]verified{refused, {Result: "LEAK"}}, exitFailed},
		"plaintext, if it counts": {[]verified{{Result: "agrees", Plaintext: 1}}, 0},
	} {
		err := (&verifyOptions{}).verdict(tt.all)
		var coded codedError
		got := 0
		if asCoded(err, &coded) {
			got = coded.code
		} else if err != nil {
			got = exitFailed
		}
		if got != tt.code {
			t.Errorf("%s: %v, code %d, want %d", name, err, got, tt.code)
		}
	}
}
