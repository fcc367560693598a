package install

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/version"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Verdict is the outcome of one check.
type Verdict string

// The verdicts. Errors make a report unsuccessful, and so does Off: nothing is
// wrong, but nothing is encrypted either.
const (
	Success Verdict = "success"
	Warning Verdict = "warning"
	Error   Verdict = "error"
	Off     Verdict = "off"
)

// Report is what the checks found. Its JSON is what `check -o json` prints.
type Report struct {
	Success bool `json:"success"`
	// NotEnabled says that all that is wrong is that the mesh is not enabled.
	NotEnabled bool       `json:"notEnabled,omitempty"`
	Categories []Category `json:"categories"`
}

// Category is a group of checks.
type Category struct {
	Name   string        `json:"categoryName"`
	Checks []CheckResult `json:"checks"`
}

// CheckResult is one check: what should be so, whether it is, and if not, why
// and what to do.
type CheckResult struct {
	Description string  `json:"description"`
	Result      Verdict `json:"result"`
	Hint        string  `json:"hint,omitempty"`
	Error       string  `json:"error,omitempty"`
}

// Checker looks at a cluster.
type Checker struct {
	// Client reads the API server itself.
	Client client.Client
	// ServerVersion asks the API server for its version.
	ServerVersion func(ctx context.Context) (*version.Info, error)
	// Now is the time that certificates are held against.
	Now time.Time
	// Values are those that `install` would be given.
	Values Values
}

// finding is a fault; nil is none. A warning doesn't fail the report.
type finding struct {
	verdict Verdict
	text    string
	hint    string
}

func failed(hint, format string, args ...any) *finding {
	return &finding{Error, fmt.Sprintf(format, args...), hint}
}

func warned(hint, format string, args ...any) *finding {
	return &finding{Warning, fmt.Sprintf(format, args...), hint}
}

// cannotLook is a fault of looking, not of what was looked at.
func cannotLook(err error) *finding {
	return failed("see whether the kubeconfig's user may read this: kubectl auth can-i --list", "%v", err)
}

type check struct {
	description string
	run         func(ctx context.Context) *finding
	// gate: if it fails, what comes after it says nothing and is left out.
	gate bool
}

type checkGroup struct {
	name   string
	checks []check
}

// Before looks whether Podseal can be installed.
func (c *Checker) Before(ctx context.Context) Report {
	return runChecks(ctx, []checkGroup{
		c.kubernetes(),
		{"before install", []check{
			{"you may create what is installed", c.mayInstall, false},
			{"no other mesh injects proxies here", c.noOtherMesh, false},
			{"ModuleConfigs are Podseal's, or Deckhouse's without its own istio module", c.noOtherModule, false},
		}},
	})
}

// Installed looks whether an installed Podseal is well.
func (c *Checker) Installed(ctx context.Context) Report {
	return runChecks(ctx, []checkGroup{
		c.kubernetes(),
		{"podseal", []check{
			{"CRDs are established", c.crds, true},
			{"the manager is available", c.managerAvailable, false},
			{"ModuleConfig istio is enabled", c.enabled, true},
			{"its settings are in force", c.settingsInForce, false},
		}},
		{"control plane", []check{
			{"Deployment d8-istio/istiod is available", c.controlPlaneAvailable, false},
			{"the CNI plugin is on every node if it captures, and else on none", c.pluginEverywhere, false},
			{"the webhooks are registered and trust the mesh root", c.webhooks, false},
			{"the injector answers", c.injectorAnswers, false},
			{"the validator is in force", c.validatorAnswers, false},
		}},
		{"identity", []check{
			{"the root is valid", c.rootValid, false},
			{"the CA that was given is in force", c.caInForce, false},
			{"the root's key is kept, and workloads have had the time to take the root over", c.rootKept, false},
			{"every namespace has the root", c.rootEverywhere, false},
		}},
		{"data plane", []check{
			{"every injected pod is ready", c.podsReady, false},
			{"no pod is held since the CNI plugin did not capture it", c.heldPods, false},
			{"every proxy is of the control plane's version", c.proxyVersions, false},
			{"every pod that should have a proxy has one", c.uncaptured, false},
			{"every label istio.io/rev names this mesh", c.revisions, false},
			{"every workload that asks to be rolled to the proxy of now is", c.autoUpgrade, false},
			{"no pod of the mesh uses the network of its node", c.onTheNode, false},
			{"every PeerAuthentication, AuthorizationPolicy, RequestAuthentication, DestinationRule and ServiceEntry is in force", c.policiesAccepted, false},
		}},
	})
}

func runChecks(ctx context.Context, groups []checkGroup) Report {
	report := Report{Success: true}
	for _, g := range groups {
		category := Category{Name: g.name}
		stop := false
		for _, ch := range g.checks {
			result := CheckResult{Description: ch.description, Result: Success}
			if f := ch.run(ctx); f != nil {
				result.Result, result.Error, result.Hint = f.verdict, f.text, f.hint
				if f.verdict == Error || f.verdict == Off {
					report.NotEnabled = report.Success && f.verdict == Off
					report.Success = false
					stop = ch.gate
				}
			}
			category.Checks = append(category.Checks, result)
			if stop {
				break
			}
		}
		report.Categories = append(report.Categories, category)
		if stop {
			break
		}
	}
	return report
}
