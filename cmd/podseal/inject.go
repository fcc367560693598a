package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"podseal.io/podseal/api/deckhouse/v1alpha1"
	"podseal.io/podseal/internal/controlplane"
	"podseal.io/podseal/internal/inject"
	"podseal.io/podseal/internal/install"
	"podseal.io/podseal/internal/settings"
)

// managerName is the name of the Deployment that enables the mesh.
const managerName = "podseal-manager"

// maxManifests bounds what is read, in bytes.
const maxManifests = 64 << 20

type injectOptions struct {
	files                            []string
	output, namespace, settings      string
	proxyImage, native, dnsOfCluster string
}

func newInjectCommand(s streams, k *kube) *cobra.Command {
	o := injectOptions{}
	cmd := &cobra.Command{
		Use:   "inject -f FILE",
		Short: "Add the proxy to the pods in manifests",
		Long: `Read manifests and print them with the proxy in every pod: in Pod, Deployment, StatefulSet, DaemonSet,
ReplicaSet, Job, CronJob and whatever else has a template of pods, also inside of lists. It is for clusters
and pipelines in which no webhook may change pods; the result is what the webhook would have made, and the
webhook leaves such pods as they are.

The settings are those of the cluster. With --settings no cluster is asked: the file holds a ModuleConfig.`,
		Example: `  podseal inject -f deployment.yaml | kubectl apply -f -
  kubectl get deployment web -o yaml | podseal inject -f - | kubectl apply -f -
  podseal inject -f app/ --settings moduleconfig.yaml --proxy-image registry.example.com/podseal-proxy:v1`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), s, k) },
	}
	f := cmd.Flags()
	f.StringArrayVarP(&o.files, "filename", "f", nil, "file with manifests, folder of such files (.yaml, .yml, .json), or - for the standard input; may be repeated")
	f.StringVarP(&o.output, "output", "o", "", "file to write to (default the standard output)")
	f.StringVarP(&o.namespace, "namespace", "n", "", "namespace of objects that name none (default that of the kubeconfig's context)")
	f.StringVar(&o.settings, "settings", "", "file with a ModuleConfig: ask no cluster")
	f.StringVar(&o.proxyImage, "proxy-image", "", "image of the proxy (default the cluster's; with --settings that of this version)")
	f.StringVar(&o.native, "native-sidecars", "auto", "native sidecars: true, false, or auto for what the cluster does (with --settings: true)")
	f.StringVar(&o.dnsOfCluster, "cluster-domain", "", "DNS domain of the cluster (default the cluster's; with --settings "+settings.DefaultClusterDomain+")")
	return cmd
}

func (o *injectOptions) run(ctx context.Context, s streams, k *kube) error {
	if len(o.files) == 0 {
		return usageError{errors.New("name what to read: -f FILE, or -f - for the standard input")}
	}
	if err := oneOf("native-sidecars", o.native, "auto", "true", "false"); err != nil {
		return err
	}
	in, err := o.read(s.in)
	if err != nil {
		return codedError{err, exitNoInput}
	}
	to, err := o.installation(ctx, s, k)
	if err != nil {
		return err
	}
	out, err := inject.ReadManifests(in, to)
	if err != nil {
		return codedError{fmt.Errorf("nothing is written:\n%w", err), exitBadInput}
	}
	for _, w := range out.Warnings {
		fmt.Fprintln(s.err, "warning: "+w)
	}
	for _, l := range out.Left {
		fmt.Fprintln(s.err, "no proxy: "+l)
	}
	if o.output != "" {
		return os.WriteFile(o.output, out.YAML, 0o600)
	}
	_, err = s.out.Write(out.YAML)
	return err
}

// read joins what the files hold to one stream of documents.
func (o *injectOptions) read(stdin io.Reader) ([]byte, error) {
	var all bytes.Buffer
	add := func(name string, r io.Reader) error {
		if all.Len() > 0 {
			all.WriteString("---\n")
		}
		n, err := io.Copy(&all, io.LimitReader(r, maxManifests-int64(all.Len())+1))
		switch {
		case err != nil:
			return fmt.Errorf("read %s: %w", name, err)
		case all.Len() > maxManifests:
			return fmt.Errorf("read %s: more than %d MB of manifests", name, maxManifests>>20)
		case n > 0 && all.Bytes()[all.Len()-1] != '\n':
			all.WriteByte('\n')
		}
		return nil
	}
	for _, name := range o.files {
		if name == "-" {
			if err := add("the standard input", stdin); err != nil {
				return nil, err
			}
			continue
		}
		files, err := manifestFiles(name)
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			if err := add(file, bytes.NewReader(b)); err != nil {
				return nil, err
			}
		}
	}
	return all.Bytes(), nil
}

// manifestFiles is the file itself, or the files with manifests in a folder.
func manifestFiles(name string) ([]string, error) {
	entries, err := os.ReadDir(name)
	if err != nil {
		return []string{name}, nil //nolint:nilerr // it is no folder; reading it as a file says what is wrong with it
	}
	var files []string
	for _, e := range entries {
		for _, suffix := range []string{".yaml", ".yml", ".json"} {
			if !e.IsDir() && strings.HasSuffix(e.Name(), suffix) {
				files = append(files, name+"/"+e.Name())
			}
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s: no file with manifests in it (.yaml, .yml, .json)", name)
	}
	return files, nil
}

// installation is what the cluster, or the file of settings, and flags say.
func (o *injectOptions) installation(ctx context.Context, s streams, k *kube) (inject.Installation, error) {
	if o.settings != "" {
		return o.offline(s)
	}
	c, cfg, err := k.client(s.err)
	if err != nil {
		return inject.Installation{}, fmt.Errorf("%w\nor a file with the settings with --settings FILE", err)
	}
	v, err := serverVersion(cfg)(ctx)
	if err != nil {
		return inject.Installation{}, fmt.Errorf("reach the API server: %w", err)
	}
	var mc v1alpha1.ModuleConfig
	if err := c.Get(ctx, types.NamespacedName{Name: settings.ModuleName}, &mc); err != nil {
		return inject.Installation{}, fmt.Errorf("read ModuleConfig %s, which holds the settings: %w", settings.ModuleName, err)
	}
	var cp appsv1.Deployment
	if err := c.Get(ctx, types.NamespacedName{Namespace: settings.Namespace, Name: settings.ServiceName}, &cp); err != nil {
		return inject.Installation{}, fmt.Errorf("read Deployment %s/%s, which says which image the proxy has (is the mesh enabled?): %w", settings.Namespace, settings.ServiceName, err)
	}
	domain := o.dnsOfCluster
	if domain == "" {
		domain = clusterDomain(ctx, c)
	}
	to, err := o.with(s, &mc, &cp, domain, controlplane.NativeSidecars(v.Major, v.Minor))
	if err != nil {
		return to, err
	}
	to.DefaultNamespace = o.namespace
	if o.namespace == "" {
		to.DefaultNamespace = k.namespace()
	}
	to.Namespace = func(name string) (*corev1.Namespace, error) {
		var ns corev1.Namespace
		err := c.Get(ctx, types.NamespacedName{Name: name}, &ns)
		if apierrors.IsNotFound(err) || apierrors.IsForbidden(err) {
			return nil, nil //nolint:nilnil // nothing is known of it, as the signature says
		}
		return &ns, err
	}
	return to, nil
}

// clusterDomain is the one that the manager was told, else the cluster's.
func clusterDomain(ctx context.Context, c client.Client) string {
	var manager appsv1.Deployment
	if err := c.Get(ctx, types.NamespacedName{Namespace: settings.ManagerNamespace, Name: managerName}, &manager); err == nil {
		values, err := decodeValues(argument(&manager, "--chart-values"))
		if domain, ok := values["clusterDomain"].(string); err == nil && ok {
			return domain
		}
	}
	return install.DetectClusterDomain(ctx, c)
}

// offline knows the control plane from the chart in this program.
func (o *injectOptions) offline(s streams) (inject.Installation, error) {
	b, err := os.ReadFile(o.settings)
	if err != nil {
		return inject.Installation{}, codedError{err, exitNoInput}
	}
	var mc v1alpha1.ModuleConfig
	if err := yaml.UnmarshalStrict(b, &mc); err != nil {
		return inject.Installation{}, codedError{fmt.Errorf("%s: not a ModuleConfig: %w", o.settings, err), exitBadInput}
	}
	objects, err := install.Render(nil, install.PartControlPlane)
	if err != nil {
		return inject.Installation{}, err
	}
	cp, err := deploymentOf(objects, settings.ServiceName)
	if err != nil {
		return inject.Installation{}, err
	}
	to, err := o.with(s, &mc, cp, o.dnsOfCluster, true)
	if to.DefaultNamespace = o.namespace; o.namespace == "" {
		to.DefaultNamespace = corev1.NamespaceDefault
	}
	return to, err
}

// with puts together what a ModuleConfig and the Deployment of the control plane
// say; flags win.
func (o *injectOptions) with(s streams, mc *v1alpha1.ModuleConfig, cp *appsv1.Deployment, domain string, native bool) (inject.Installation, error) {
	read, warnings, err := settings.Parse(mc, settings.Cluster{Domain: domain})
	if err != nil {
		return inject.Installation{}, codedError{fmt.Errorf("the settings are not in force:\n%w", err), exitBadInput}
	}
	for _, w := range warnings {
		fmt.Fprintln(s.err, "warning: settings: "+w)
	}
	cfg := controlplane.Config{ProxyImage: argument(cp, "--proxy-image"), ImagePullPolicy: corev1.PullPolicy(argument(cp, "--image-pull-policy"))}
	if o.proxyImage != "" {
		cfg.ProxyImage = o.proxyImage
	}
	for _, said := range []string{argument(cp, "--native-sidecars"), o.native} {
		if b, err := strconv.ParseBool(said); err == nil {
			native = b
		}
	}
	if cfg.ProxyImage == "" {
		return inject.Installation{}, errors.New("the control plane doesn't say which image the proxy has; name it with --proxy-image")
	}
	return inject.Installation{Settings: read, Params: cfg.InjectParams(native)}, nil
}

// argument is the value of an argument --name=value of a Deployment's first
// container, "" if it has none.
func argument(d *appsv1.Deployment, name string) string {
	for _, c := range d.Spec.Template.Spec.Containers {
		for _, arg := range c.Args {
			if value, ok := strings.CutPrefix(arg, name+"="); ok {
				return value
			}
		}
	}
	return ""
}

func deploymentOf(objects []*unstructured.Unstructured, name string) (*appsv1.Deployment, error) {
	for _, u := range objects {
		if u.GetKind() == "Deployment" && u.GetName() == name {
			d := &appsv1.Deployment{}
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, d); err != nil {
				return nil, fmt.Errorf("read Deployment %s of the chart: %w", name, err)
			}
			return d, nil
		}
	}
	return nil, fmt.Errorf("the chart has no Deployment %s", name)
}
