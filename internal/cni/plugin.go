package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"podseal.io/podseal/internal/capture"
)

// netConf is what the runtime writes to the plugin's standard input, as far as it
// matters here.
type netConf struct {
	types.NetConf
	ExcludeNamespaces []string `json:"excludeNamespaces"`
	RuntimeConfig     struct {
		Annotations map[string]string `json:"io.kubernetes.cri.pod-annotations"`
	} `json:"runtimeConfig"`
}

// Plugin is one run of the plugin.
type Plugin struct {
	Stdout io.Writer // the result
	// Enter runs a function in a pod's network namespace. nil is the kernel's.
	Enter func(netns string, do func() error) error
}

// Main runs the plugin as a runtime starts it: CNI_COMMAND and the rest in the
// environment, the configuration on standard input. It returns the exit code.
func Main(ctx context.Context, stdout io.Writer) int {
	p := Plugin{Stdout: stdout}
	funcs := skel.CNIFuncs{
		Add:   func(a *skel.CmdArgs) error { return p.Add(ctx, a) },
		Check: func(a *skel.CmdArgs) error { return p.Check(ctx, a) },
		// The rules are the pod's network namespace's own and end with it.
		Del:    func(*skel.CmdArgs) error { return nil },
		GC:     func(*skel.CmdArgs) error { return nil },
		Status: func(*skel.CmdArgs) error { return nil }, // it needs nothing that could be away
	}
	fault := skel.PluginMainFuncsWithError(funcs, version.PluginSupports("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"), Name)
	if fault == nil {
		return 0
	}
	_ = fault.Print() // the exit code says it as well
	return 1
}

// Add captures the pod if it is to be captured, and hands the result of the plugins
// before on.
func (p *Plugin) Add(ctx context.Context, args *skel.CmdArgs) error {
	conf, config, err := read(args)
	if err != nil {
		return err
	}
	if conf.PrevResult == nil {
		return types.NewError(types.ErrInvalidNetworkConfig, Name+" stands alone in its network configuration; it must come after the plugin that makes the pod's network", "")
	}
	if config != nil {
		if err := p.inPod(args.Netns, func() error { return put(ctx, *config) }); err != nil {
			return fmt.Errorf("%s: the traffic of this pod can't be captured, so it does not start: %w", Name, err)
		}
	}
	result, err := conf.PrevResult.GetAsVersion(conf.CNIVersion)
	if err != nil {
		return fmt.Errorf("hand the result on: %w", err)
	}
	return result.PrintTo(p.Stdout)
}

// Check says whether a pod that is to be captured still is.
func (p *Plugin) Check(ctx context.Context, args *skel.CmdArgs) error {
	_, config, err := read(args)
	if err != nil || config == nil {
		return err
	}
	return p.inPod(args.Netns, func() error {
		rules, err := rulesFor(*config)
		if err != nil {
			return err
		}
		return capture.Verify(ctx, rules)
	})
}

// read reads the configuration and says what of the pod is to be captured; nil is
// nothing.
func read(args *skel.CmdArgs) (*netConf, *capture.Config, error) {
	conf := &netConf{}
	if err := json.Unmarshal(args.StdinData, conf); err != nil {
		return nil, nil, types.NewError(types.ErrDecodingFailure, "read the network configuration: "+err.Error(), "")
	}
	if conf.RawPrevResult != nil {
		if err := version.ParsePrevResult(&conf.NetConf); err != nil {
			return nil, nil, types.NewError(types.ErrDecodingFailure, "read the result of the plugins before: "+err.Error(), "")
		}
	}
	if slices.Contains(conf.ExcludeNamespaces, podNamespace(args.Args)) {
		return conf, nil, nil
	}
	config, err := Wanted(conf.RuntimeConfig.Annotations)
	return conf, config, err
}

// podNamespace is what a runtime says of the pod in CNI_ARGS (KEY=VALUE;…), or "".
func podNamespace(cniArgs string) string {
	for pair := range strings.SplitSeq(cniArgs, ";") {
		if value, ok := strings.CutPrefix(pair, "K8S_POD_NAMESPACE="); ok {
			return value
		}
	}
	return ""
}

// rulesFor are the rules for the network namespace of the calling thread.
func rulesFor(config capture.Config) (capture.Rules, error) {
	var err error
	if config.IPv6, err = capture.HasIPv6(os.DirFS("/proc")); err != nil {
		return capture.Rules{}, err
	}
	return capture.Build(config), nil
}

// put captures the network namespace of the calling thread, and reads it back.
func put(ctx context.Context, config capture.Config) error {
	rules, err := rulesFor(config)
	if err != nil {
		return err
	}
	if err := capture.Apply(ctx, rules); err != nil {
		return err
	}
	// without these the pod is slower, and nothing else; the proxy reports the first
	_, _ = capture.WidenLoopback(), capture.ForgetResets()
	return capture.Verify(ctx, rules)
}

func (p *Plugin) inPod(netns string, do func() error) error {
	if p.Enter != nil {
		return p.Enter(netns, do)
	}
	return enter(netns, do)
}

// enter runs do on a thread of its own in the network namespace at path, and waits
// for it. The thread is never used again.
func enter(path string, do func() error) error {
	ns, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the pod's network namespace: %w", err)
	}
	defer func() { _ = ns.Close() }() // it was only read
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its namespace
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- errors.Join(errors.New("enter the pod's network namespace"), err)
			return
		}
		done <- do()
	}()
	return <-done
}
