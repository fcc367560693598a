// Command images builds the project's container images as Docker archives,
// reproducibly and without a container engine. `images --help` lists the images.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"podseal.io/hack/images/archive"
)

const usage = `Images builds container images as archives that "ctr images import" and
"docker load" read. The same input gives the same bytes.

Usage:
  images podseal    --binary PATH --tag REF --out FILE.tar
  images proxy      --binary PATH --tag REF --out FILE.tar
  images static     --binary PATH --tag REF --out FILE.tar [--entrypoint PATH] [--user UID:GID]
  images all-in-one --tag REF --out FILE.tar [--cache DIR]
  images protocols  --tag REF --out FILE.tar [--cache DIR]

Images:
  podseal      the CLI and control plane, from scratch, as user 1337
  proxy        the data plane, from scratch, as user 1337
  static       any static program, from scratch
  all-in-one   nginx, wget, curl, nc, tcpdump and a shell, from Debian's packages
  protocols    databases, brokers, mail, SSH, FTP and so on, servers and clients, from Debian's packages

`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the program at once.
	context.AfterFunc(ctx, stop)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

// options are the flags of all images; each image reads the ones it knows.
type options struct {
	binary, tag, out, entrypoint, user, cache string
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return errors.New("no image named: want podseal, proxy, static, all-in-one or protocols")
	}
	kind := args[0]
	if kind == "-h" || kind == "--help" || kind == "help" {
		fmt.Fprint(stdout, usage)
		return nil
	}
	var o options
	flags := flag.NewFlagSet("images "+kind, flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.tag, "tag", "", "name of the image, such as registry/name:1")
	flags.StringVar(&o.out, "out", "", "archive to write")
	switch kind {
	case "podseal", "proxy":
		flags.StringVar(&o.binary, "binary", "", "static program to put in")
	case "static":
		flags.StringVar(&o.binary, "binary", "", "static program to put in")
		flags.StringVar(&o.entrypoint, "entrypoint", "", "path of the program in the image (default /NAME of the binary)")
		flags.StringVar(&o.user, "user", "", "user that the program runs as (default root)")
	case "all-in-one", "protocols":
		flags.StringVar(&o.cache, "cache", "", "directory for downloaded packages (default in the user's cache directory)")
	default:
		return fmt.Errorf("unknown image %q: want podseal, proxy, static, all-in-one or protocols", kind)
	}
	if err := flags.Parse(args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if err := o.validate(kind); err != nil {
		return err
	}
	if _, ok := sets()[kind]; ok {
		return writePackages(ctx, kind, o)
	}
	img, err := buildImage(kind, o)
	if err != nil {
		return err
	}
	return archive.WriteFile(o.out, img)
}

// validate reports every flag that is missing.
func (o options) validate(kind string) error {
	var errs []error
	if o.tag == "" {
		errs = append(errs, errors.New("--tag is missing"))
	}
	if o.out == "" {
		errs = append(errs, errors.New("--out is missing"))
	}
	if _, ok := sets()[kind]; !ok && o.binary == "" {
		errs = append(errs, errors.New("--binary is missing"))
	}
	return errors.Join(errs...)
}
