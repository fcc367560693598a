// Command podseal installs Podseal into a Kubernetes cluster and looks after
// it. As `podseal manager` and `podseal controlplane` it also is what runs
// there.
//
// Results go to stdout, progress and notes to stderr. Exit codes: 0 done, 1
// failed or "no", 2 (of check) installed but not enabled, 64 wrong use of the
// command line, 65 input that can't be read, 66 no such workload or pod, 69 no
// control plane, 76 a control plane or proxy that is too old, 77 no permission, 78
// (of verify) Pod Security forbids it, 79 findings of `analyze`.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

const (
	exitFailed       = 1
	exitNotEnabled   = 2
	exitUsage        = 64 // EX_USAGE of sysexits.h, as istioctl
	exitBadInput     = 65 // EX_DATAERR
	exitNoInput      = 66 // EX_NOINPUT
	exitUnavailable  = 69 // EX_UNAVAILABLE
	exitVersion      = 76 // EX_PROTOCOL: a control plane or a proxy is too old
	exitFindings     = 79 // as istioctl
	exitNoPermission = 77 // EX_NOPERM
	exitPodSecurity  = 78 // EX_CONFIG: the namespace lets nobody capture
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// after the first signal the second one ends the program at once
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, arguments(os.Args), streams{in: os.Stdin, out: os.Stdout, err: os.Stderr, color: isTerminal(os.Stdout) && os.Getenv("NO_COLOR") == "", ask: isTerminal(os.Stdin)}))
}

// arguments are those of the command line. kubectl completes a plugin by calling
// kubectl_complete-<name>.
func arguments(argv []string) []string {
	if filepath.Base(argv[0]) == "kubectl_complete-podseal" {
		return append([]string{cobra.ShellCompRequestCmd}, argv[1:]...)
	}
	return argv[1:]
}

func isTerminal(f *os.File) bool {
	return term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
}

// streams are where a command reads and writes.
type streams struct {
	in       io.Reader
	out, err io.Writer
	color    bool // out is a terminal that shows colours
	ask      bool // in is a terminal: somebody can answer
}

// usageError is a wrong use of the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// errSilent fails the command after it has said why; errNotEnabled does so with
// exit code 2.
var (
	errSilent     = errors.New("failed")
	errNotEnabled = fmt.Errorf("%w: the mesh is not enabled", errSilent)
)

// run runs one command line and returns the exit code.
func run(ctx context.Context, args []string, s streams) int {
	root := newRoot(s)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var usage usageError
	wrongUse := errors.As(err, &usage) || strings.HasPrefix(err.Error(), "unknown command") ||
		strings.HasPrefix(err.Error(), "required flag") || strings.HasPrefix(err.Error(), "if any flags in the group")
	if !errors.Is(err, errSilent) {
		fmt.Fprintf(s.err, "podseal: %v\n", err)
		if wrongUse {
			fmt.Fprintln(s.err, "`podseal help` lists the commands, `podseal COMMAND --help` the flags of one.")
		}
	}
	coded, hasCode := errors.AsType[codedError](err)
	switch {
	case wrongUse:
		return exitUsage
	case errors.Is(err, errNotEnabled):
		return exitNotEnabled
	case hasCode:
		return coded.code
	default:
		return exitFailed
	}
}

func newRoot(s streams) *cobra.Command {
	root := &cobra.Command{
		Use:   "podseal",
		Short: "Encrypts the traffic between pods with mutual TLS",
		Long: `Podseal encrypts the traffic between Kubernetes pods with mutual TLS.

  podseal check --pre    may it be installed here?
  podseal install        install it; ModuleConfig istio then turns it on
  podseal check          is it well?
  podseal edges          who talks to whom, and is it encrypted?
  podseal status         how is each proxy?
  podseal verify TARGET  is that what is on the wire?
  podseal can A B        may A talk to B, and over what?
  podseal analyze        what will not work as written?
  podseal strict NS      who would STRICT refuse?
  podseal inject -f F    add the proxy to manifests where no webhook does
  podseal uninstall      remove it`,
		Annotations:   displayName(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetIn(s.in)
	root.SetOut(s.out)
	root.SetErr(s.err)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	k := &kube{}
	k.addFlags(root.PersistentFlags())
	root.AddCommand(
		newInstallCommand(s, k),
		newUninstallCommand(s, k),
		newCheckCommand(s, k),
		newVersionCommand(s, k),
		newEdgesCommand(s, k),
		newStatusCommand(s, k),
		newDescribeCommand(s, k),
		newIdentityCommand(s, k),
		newCanCommand(s, k),
		newInjectCommand(s, k),
		newAuthzCommand(s, k),
		newTapCommand(s, k),
		newVerifyCommand(s, k),
		newReportCommand(s, k),
		newStrictCommand(s, k),
		newDashboardCommand(s, k),
		newAnalyzeCommand(s, k),
		newManagerCommand(s, k),
		newControlPlaneCommand(),
	)
	for _, cmd := range root.Commands() {
		completeNamespaceFlag(cmd, k)
	}
	return root
}

// displayName makes the help of a kubectl plugin say kubectl.
func displayName() map[string]string {
	if strings.HasPrefix(filepath.Base(os.Args[0]), "kubectl-") {
		return map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl podseal"}
	}
	return nil
}

// noArgs refuses arguments as wrong use.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%s takes no arguments, got %q", cmd.CommandPath(), args[0])}
	}
	return nil
}

// oneOf refuses a flag's value that isn't listed.
func oneOf(flag, value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return usageError{fmt.Errorf("--%s %q: write one of %s", flag, value, strings.Join(allowed, ", "))}
}
