package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"

	"podseal.io/hack/cluster/internal/host"
)

// policyFile is the program that Debian's package scripts ask whether they may
// start a service.
const policyFile = "/usr/sbin/policy-rc.d"

// requirement is a program and the Debian package that has it.
type requirement struct{ path, pkg string }

func requirements() []requirement {
	return []requirement{
		{"containerd", "containerd"},
		{"runc", "runc"},
		{"/usr/lib/cni/bridge", "containernetworking-plugins"},
		{"ip", "iproute2"},
		{"nft", "nftables"},
		{"nsenter", "util-linux"},
		{"mount", "mount"},
		{"tcpdump", "tcpdump"},
		{"conntrack", "conntrack"},
	}
}

// missingPackages returns the packages whose programs the machine lacks.
func missingPackages(has func(path string) bool) []string {
	var missing []string
	for _, r := range requirements() {
		if !has(r.path) {
			missing = append(missing, r.pkg)
		}
	}
	return missing
}

// InstallPackages installs the Debian packages that are missing. It keeps their
// services from starting: the cluster runs its own copies.
func InstallPackages(ctx context.Context, progress func(format string, args ...any)) error {
	has := func(path string) bool {
		_, err := exec.LookPath(path)
		return err == nil
	}
	if len(missingPackages(has)) == 0 {
		return nil
	}
	unlock, err := host.Lock(ctx, "/run/lock", "podseal-cluster-apt.lock")
	if err != nil {
		return err
	}
	defer unlock()
	missing := missingPackages(has)
	if len(missing) == 0 {
		return nil
	}
	if !has("apt-get") {
		return fmt.Errorf("apt-get is missing, and so is what these packages hold: %s; install them by hand or use Debian 12", strings.Join(missing, " "))
	}
	progress("installing packages: %s", strings.Join(missing, " "))
	allow, err := forbidServices()
	if err != nil {
		return err
	}
	err = aptGet(ctx, append([]string{"install", "--yes", "--no-install-recommends"}, missing...)...)
	if err != nil {
		// The lists may be old or absent.
		if err = aptGet(ctx, "update"); err == nil {
			err = aptGet(ctx, append([]string{"install", "--yes", "--no-install-recommends"}, missing...)...)
		}
	}
	return errors.Join(err, allow())
}

// forbidServices keeps package scripts from starting services until the returned
// function is called. A policy that is there already is the machine's own.
func forbidServices() (allow func() error, err error) {
	file, err := os.OpenFile(policyFile, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return func() error { return nil }, nil
	}
	if err != nil {
		return nil, fmt.Errorf("forbid services: %w", err)
	}
	_, err = file.WriteString("#!/bin/sh\nexit 101\n")
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, fmt.Errorf("forbid services: %w", err)
	}
	return func() error { return os.Remove(policyFile) }, nil
}

func aptGet(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-o", "DPkg::Lock::Timeout=120"}, args...)...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get %s: %w: %s", args[0], err, tail(string(out)))
	}
	return nil
}
