package cni

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Mode says what an agent keeps up.
type Mode string

// The modes. An agent that ends changes nothing: the plugin works without it, and
// goes on to after a restart of the node.
const (
	Install Mode = "install"
	Remove  Mode = "remove"
)

// lookEvery is a net under the watch of the directories.
const lookEvery = 10 * time.Second

// DefaultPause is how long the program outlives its place in the network
// configuration: a runtime that began a sandbox with the old one still needs it.
const DefaultPause = 5 * time.Second

// Agent keeps the plugin on a node, or off it. Only one may run on a node.
type Agent struct {
	Mode    Mode
	ConfDir string // where the runtime looks for network configurations
	BinDir  string // where it looks for plugins
	Program string // the file that becomes the plugin
	Exclude []string
	Pause   time.Duration
	Log     *slog.Logger
	// NodeConfDir is ConfDir as the node calls it, for people; "" is the same.
	NodeConfDir string

	installed os.FileInfo // of the program, as it was put there
}

// Run makes the node as the mode says, and makes it so again whenever somebody
// changes it, until the context ends.
func (a *Agent) Run(ctx context.Context) error {
	if a.Mode != Install && a.Mode != Remove {
		return fmt.Errorf("mode %q: it is %s or %s", a.Mode, Install, Remove)
	}
	a.sweep()
	changes := make(chan struct{}, 1)
	var watching sync.WaitGroup
	defer watching.Wait()
	watching.Go(func() {
		if err := watch(ctx, changes, a.ConfDir, a.BinDir); err != nil {
			a.Log.Warn("directories can't be watched, they are looked at from time to time", slog.String("error", err.Error()))
		}
	})
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	said := ""
	for {
		err := a.once(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			said = ""
		case err.Error() != said:
			said = err.Error()
			a.Log.Error("the node is not as it should be", slog.String("mode", string(a.Mode)), slog.String("error", said))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changes:
		case <-tick.C:
		}
	}
}

// once makes the node as the mode says. The order leaves no moment in which the
// network configuration names a program that isn't there.
func (a *Agent) once(ctx context.Context) error {
	if a.Mode == Install {
		if err := a.installProgram(); err != nil {
			return err
		}
		return a.installEntry()
	}
	changed, err := a.removeEntries()
	if err != nil {
		return err
	}
	path := filepath.Join(a.BinDir, Name)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if changed {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(a.Pause):
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the plugin: %w", err)
	}
	a.Log.Info("plugin removed", slog.String("path", path))
	return nil
}

var errOtherVersion = errors.New("the plugin is of another version")

// Check reports in which way the node is not as the mode says.
func (a *Agent) Check() error {
	program, err := os.Stat(filepath.Join(a.BinDir, Name))
	there := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for the plugin: %w", err)
	}
	if a.Mode == Remove {
		files, err := a.configurations()
		if err != nil {
			return err
		}
		for _, name := range files {
			conf, err := a.readConfiguration(name)
			if err != nil {
				continue // as it is no list, it can't name the plugin
			}
			if named, err := has(conf); err == nil && named {
				return fmt.Errorf("%s still names the plugin", name)
			}
		}
		if there {
			return errors.New("the plugin's program is still there")
		}
		if set, err := a.setAside(); err != nil || len(set) > 0 {
			return errors.Join(err, fmt.Errorf("not put back yet: %v", set))
		}
		return nil
	}
	own, err := os.Stat(a.Program)
	switch {
	case err != nil:
		return fmt.Errorf("look at the program: %w", err)
	case !there:
		return fmt.Errorf("there is no plugin in %s", a.BinDir)
	case program.Size() != own.Size():
		return errOtherVersion
	}
	// Two versions are often of one size.
	if same, err := sameContent(filepath.Join(a.BinDir, Name), a.Program); err != nil {
		return err
	} else if !same {
		return errOtherVersion
	}
	name, conf, err := a.primary()
	if err != nil {
		return err
	}
	if !isList(conf) {
		return fmt.Errorf("%s is not a list of plugins yet", name)
	}
	_, missing, err := insert(conf, a.Exclude)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if missing {
		return fmt.Errorf("%s does not have the plugin as its last", name)
	}
	return nil
}

// installProgram puts the program in its place, in one step, if another is there or
// none.
func (a *Agent) installProgram() error {
	path := filepath.Join(a.BinDir, Name)
	now, err := os.Lstat(path)
	if err == nil && a.installed != nil && os.SameFile(now, a.installed) && now.Size() == a.installed.Size() && now.ModTime().Equal(a.installed.ModTime()) {
		return nil
	}
	same, err := sameContent(path, a.Program)
	if err != nil {
		return err
	}
	if !same {
		if err := replace(path, 0o755, nil, func(w io.Writer) error {
			from, err := os.Open(a.Program)
			if err != nil {
				return err
			}
			defer func() { _ = from.Close() }() // it was only read
			_, err = io.Copy(w, from)
			return err
		}); err != nil {
			return fmt.Errorf("install the plugin: %w", err)
		}
		a.Log.Info("plugin installed", slog.String("path", path))
	}
	a.installed, err = os.Lstat(path)
	return err
}

// installEntry puts the plugin into the network configuration that the runtime uses:
// the first by name.
func (a *Agent) installEntry() error {
	name, conf, err := a.primary()
	if err != nil {
		return err
	}
	if !isList(conf) {
		return a.makeList(name, conf)
	}
	changed, err := a.rewrite(name, conf, func(conf []byte) ([]byte, bool, error) { return insert(conf, a.Exclude) })
	if changed {
		a.Log.Info("plugin added to the network configuration", slog.String("path", filepath.Join(a.ConfDir, name)))
	}
	return err
}

// removeEntries takes the plugin out of every network configuration.
func (a *Agent) removeEntries() (bool, error) {
	any, err := a.putBack()
	if err != nil {
		return any, err
	}
	files, err := a.configurations()
	if err != nil {
		return any, err
	}
	for _, name := range files {
		conf, err := a.readConfiguration(name)
		if err != nil {
			continue // it is none that this agent has written
		}
		changed, err := a.rewrite(name, conf, remove)
		if err != nil && changed {
			return any, err
		}
		if changed {
			any = true
			a.Log.Info("plugin removed from the network configuration", slog.String("path", filepath.Join(a.ConfDir, name)))
		}
	}
	return any, nil
}

// rewrite changes a configuration in one step, unless somebody else has just changed
// it: then that is seen by the watch, and looked at again.
func (a *Agent) rewrite(name string, conf []byte, change func([]byte) ([]byte, bool, error)) (bool, error) {
	path := filepath.Join(a.ConfDir, name)
	changed, differs, err := change(conf)
	if err != nil {
		return false, fmt.Errorf("%s: %w", name, err)
	}
	if !differs {
		return false, nil
	}
	was, err := os.Lstat(path)
	if err != nil {
		return true, fmt.Errorf("look at %s: %w", name, err)
	}
	unchanged := func() error {
		now, err := a.readConfiguration(name)
		if err == nil && string(now) != string(conf) {
			err = errors.New("somebody else is changing it")
		}
		return err
	}
	err = replace(path, was.Mode().Perm(), unchanged, func(w io.Writer) error {
		_, err := w.Write(changed)
		return err
	})
	if err != nil {
		return true, fmt.Errorf("change %s: %w", name, err)
	}
	return true, nil
}

// primary is the network configuration that runtimes use: the first by name.
func (a *Agent) primary() (name string, conf []byte, err error) {
	files, err := a.configurations()
	if err != nil {
		return "", nil, err
	}
	if len(files) == 0 {
		return "", nil, fmt.Errorf("there is no network configuration in %s yet; if this node keeps them elsewhere, set cni.platform or cni.cniConfDir (docs/cni.md)", cmp.Or(a.NodeConfDir, a.ConfDir))
	}
	conf, err = a.readConfiguration(files[0])
	if err != nil {
		return "", nil, fmt.Errorf("read %s: %w", files[0], err)
	}
	return files[0], conf, nil
}

// configurations are the names of the files in which runtimes look, in their order.
func (a *Agent) configurations() ([]string, error) {
	all, err := os.ReadDir(a.ConfDir)
	if err != nil {
		return nil, fmt.Errorf("list network configurations: %w", err)
	}
	var names []string
	for _, e := range all { // sorted by name
		if !e.IsDir() && slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(e.Name())) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func (a *Agent) readConfiguration(name string) ([]byte, error) {
	path := filepath.Join(a.ConfDir, name)
	if info, err := os.Lstat(path); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, errors.New("it is no regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	return io.ReadAll(io.LimitReader(f, maxConfig+1))
}

// temporary are files that are being written; no runtime looks at them.
const temporary = "." + Name + "-*.tmp"

// sweep removes what an agent that was killed has left half written.
func (a *Agent) sweep() {
	for _, dir := range []string{a.ConfDir, a.BinDir} {
		left, _ := filepath.Glob(filepath.Join(dir, temporary)) // the pattern is right
		for _, path := range left {
			_ = os.Remove(path) // it does no harm
		}
	}
}
