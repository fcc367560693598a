// Package cni captures the traffic of pods from the node's side: a chained CNI
// plugin, which the container runtime runs while it makes a pod's sandbox, and the
// agent that keeps the plugin installed on its node.
//
// The plugin decides from what the runtime hands it: the pod's annotations
// (capability io.kubernetes.cri.pod-annotations). So there are no credentials on the
// node, nothing is asked, and capture works while agent, control plane and API
// server are away. A pod that is to be captured and can't be gets no sandbox.
//
// A runtime that hands over no annotations leaves every pod uncaptured. Invariant
// of the whole, which doesn't rest on this package: a proxy that was injected for
// this plugin proves its capture before it becomes ready (capture.Prove), so a pod
// that slipped through is held.
package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"podseal.io/podseal/internal/capture"
)

// Name is the plugin's type in a network configuration, and its file.
const Name = "podseal-cni"

// annotationsCapability is how a runtime is asked for the pod's annotations, and the
// key under which they come.
const annotationsCapability = "io.kubernetes.cri.pod-annotations"

// Annotations of an injected pod that the plugin reads (contract 5.50, 5.51).
const (
	statusAnnotation    = "sidecar.istio.io/status"
	injectAnnotation    = "sidecar.istio.io/inject"
	modeAnnotation      = "sidecar.istio.io/interceptionMode"
	trafficPrefix       = "traffic.sidecar.istio.io/"
	rerouteAnnotation   = "istio.io/reroute-virtual-interfaces"
	loopbackAnnotation  = "podseal.io/outbound-ipv4-loopback-cidr"
	loopbackEnvironment = "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR"
)

// Names of injected containers.
const (
	proxyContainer = "istio-proxy"
	initContainer  = "istio-init"
)

// errUnreadable says that a pod was injected by something whose words are not ours.
var errUnreadable = errors.New("the pod's annotations can't be read")

// Wanted says what of a pod is to be captured, and nil if nothing is: it has no proxy
// of the kind, brings its own init container, or wants no capture (contract 5.50).
func Wanted(annotations map[string]string) (*capture.Config, error) {
	text, injected := annotations[statusAnnotation]
	if !injected {
		return nil, nil
	}
	if inject, err := strconv.ParseBool(annotations[injectAnnotation]); err == nil && !inject {
		return nil, nil
	}
	var status struct {
		InitContainers []string `json:"initContainers"`
		Containers     []string `json:"containers"`
	}
	if err := json.Unmarshal([]byte(text), &status); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", errUnreadable, statusAnnotation, err)
	}
	all := slices.Concat(status.InitContainers, status.Containers)
	if slices.Contains(all, initContainer) || !slices.Contains(all, proxyContainer) || annotations[modeAnnotation] == "NONE" {
		return nil, nil
	}
	return configOf(annotations)
}

// configOf reads the annotations as the init container reads its arguments, so that
// both ways to capture a pod are one.
func configOf(annotations map[string]string) (*capture.Config, error) {
	var args []string
	for _, a := range []struct{ name, flag string }{
		{modeAnnotation, "-m"},
		{trafficPrefix + "includeOutboundIPRanges", "-i"},
		{trafficPrefix + "excludeOutboundIPRanges", "-x"},
		{trafficPrefix + "includeInboundPorts", "-b"},
		{trafficPrefix + "excludeInboundPorts", "-d"},
		{trafficPrefix + "includeOutboundPorts", "-q"},
		{trafficPrefix + "excludeOutboundPorts", "-o"},
		{trafficPrefix + "excludeInterfaces", "-c"},
		{trafficPrefix + "kubevirtInterfaces", "-k"},
		{rerouteAnnotation, "-k"},
	} {
		if value, set := annotations[a.name]; set {
			args = append(args, a.flag, value)
		}
	}
	getenv := func(name string) string {
		if name == loopbackEnvironment {
			return annotations[loopbackAnnotation]
		}
		return ""
	}
	var usage strings.Builder
	opts, err := capture.Parse(args, getenv, &usage)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnreadable, err)
	}
	return &opts.Config, nil
}
