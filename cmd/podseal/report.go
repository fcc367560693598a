package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"podseal.io/podseal/internal/ca"
	"podseal.io/podseal/internal/controlplane"
	"podseal.io/podseal/internal/edges"
	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/settings"
	"podseal.io/podseal/internal/version"
)

// reportKind is what the document is; maxReport bounds one that is read, in bytes.
const (
	reportKind = "podseal.io/report/v1"
	maxReport  = 512 << 20
)

//go:embed report.html
var reportPage string

// auditReport is the document of `podseal report`: what the control plane states, as
// it signed it; one statement of a replica that speaks for all, or several.
type auditReport struct {
	Kind       string            `json:"kind"`
	Statements []*ca.Attestation `json:"statements"`
}

type reportOptions struct{ namespace, output, roots string }

func newReportCommand(s streams, k *kube) *cobra.Command {
	o := reportOptions{}
	cmd := &cobra.Command{
		Use:   "report",
		Short: "A signed document of who talked to whom and how, for an auditor",
		Long: `Write what the mesh knows of its traffic, signed by the control plane: who was observed and who wasn't,
each edge with its evidence, what was refused, and the objects that let traffic be anything else than
mutual TLS. As html it is a page to read, which holds the signed statements, too.
"podseal report verify FILE" checks either against the mesh's roots; one changed byte fails.`,
		Example: `  podseal report -o html > report.html
  podseal report verify report.html --roots root-cert.pem`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.write(cmd.Context(), s, k) },
	}
	f := cmd.Flags()
	f.StringVarP(&o.namespace, "namespace", "n", "", "only what concerns this namespace (default all)")
	f.StringVarP(&o.output, "output", "o", "html", "html or json")
	verify := &cobra.Command{
		Use:   "verify FILE",
		Short: "Check a report: is it what the control plane signed?",
		Long: `Check that every statement in a report was signed by the control plane of the mesh whose roots are given, or
are those of the cluster, with a certificate that was good at that time; and that the rest of the file is
what these statements say. FILE is what "podseal report" wrote, html or json; - is the standard input.
The exit code is 1 if anything is not as it was signed.`,
		Args: args("FILE"),
		RunE: func(cmd *cobra.Command, names []string) error { return o.verify(cmd.Context(), s, k, names[0]) },
	}
	verify.Flags().StringVar(&o.roots, "roots", "", "PEM file of the mesh's roots (default those of the cluster)")
	cmd.AddCommand(verify)
	return cmd
}

func (o *reportOptions) write(ctx context.Context, s streams, k *kube) error {
	if err := oneOf("output", o.output, "html", "json"); err != nil {
		return err
	}
	l, err := k.look(ctx, s.err)
	if err != nil {
		return err
	}
	defer l.close()
	doc := &auditReport{Kind: reportKind}
	if doc.Statements, err = l.attest(ctx, o.namespace); err != nil {
		return err
	}
	text, err := doc.encode(o.output == "html")
	if err != nil {
		return err
	}
	_, err = s.out.Write(text)
	return err
}

// attest asks until every replica is spoken for: a document that lacks one would not
// be whole.
func (l *looker) attest(ctx context.Context, namespace string) ([]*ca.Attestation, error) {
	path := controlplane.AttestPath
	if namespace != "" {
		path += "?" + url.Values{"namespace": {namespace}}.Encode()
	}
	var all []*ca.Attestation
	missing, err := l.each(ctx, func(r *replica) ([]controlplane.PeerView, error) {
		a, said := &ca.Attestation{}, &controlplane.Statement{}
		if err := l.call(ctx, r, http.MethodGet, path, nil, a); err != nil {
			return nil, err
		}
		if err := json.Unmarshal(a.Statement, said); err != nil {
			return nil, fmt.Errorf("read what is stated: %w", err)
		}
		all = append(all, a)
		return said.Peers, nil
	})
	if err != nil {
		return nil, err
	}
	if len(missing) > 0 {
		return nil, codedError{fmt.Errorf("the document would not be whole: %w", missing[0]), exitUnavailable}
	}
	return all, nil
}

// encode writes the document, always the same for the same statements.
func (d *auditReport) encode(html bool) ([]byte, error) {
	var b bytes.Buffer
	if !html {
		err := writeJSON(&b, d)
		return b.Bytes(), err
	}
	statements, err := d.statements()
	if err != nil {
		return nil, err
	}
	embedded, err := json.Marshal(d)
	if err != nil {
		return nil, err
	}
	page, err := template.New("report").Funcs(template.FuncMap{"when": func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }, "size": func(n uint64) string { return size(int64(n)) }, "seenBy": seenBy}).Parse(reportPage)
	if err != nil {
		return nil, err
	}
	if err := page.Execute(&b, contentOf(statements)); err != nil {
		return nil, err
	}
	// outside of the template, which would write the base64 as a string of JavaScript
	return bytes.Replace(b.Bytes(), []byte(embedMark), append(append([]byte(embedOpen), embedded...), embedClose...), 1), nil
}

// The place of the signed document in the page. JSON of base64 and PEM holds no "<".
const (
	embedMark  = "<p>signed-statements</p>"
	embedOpen  = `<script type="application/json" id="signed">`
	embedClose = "</script>"
)

// statements reads what was stated, whoever signed it.
func (d *auditReport) statements() ([]controlplane.Statement, error) {
	if d.Kind != reportKind || len(d.Statements) == 0 {
		return nil, errors.New("it is no report of podseal, or an empty one")
	}
	all := make([]controlplane.Statement, len(d.Statements))
	for i, a := range d.Statements {
		if a == nil || json.Unmarshal(a.Statement, &all[i]) != nil || all[i].Kind != controlplane.StatementKind {
			return nil, fmt.Errorf("statement %d can't be read", i+1)
		}
	}
	return all, nil
}

func (o *reportOptions) verify(ctx context.Context, s streams, k *kube, name string) error {
	text, err := readAll(name, s.in)
	if err != nil {
		return codedError{err, exitBadInput}
	}
	roots, err := o.readRoots(ctx, k)
	if err != nil {
		return err
	}
	statements, err := verifyReport(text, roots)
	if err != nil {
		return fmt.Errorf("%s does NOT hold: %w", name, err)
	}
	for i := range statements {
		st := &statements[i]
		fmt.Fprintf(s.out, "√ stated by %s/ns/%s/sa/%s (%s) at %s, of what was seen since %s: %d pods, %d proxies, %d exceptions\n", st.TrustDomain, settings.Namespace, controlplane.Signer,
			st.Replica, st.Now.UTC().Format(time.RFC3339), st.Since.UTC().Format(time.RFC3339), len(st.Pods), len(st.Proxies), len(st.Exceptions))
	}
	fmt.Fprintf(s.out, "%s holds: it is what the mesh with roots %s signed\n", name, roots.Hash())
	return nil
}

// verifyReport checks each statement, and that nothing else is in the file.
func verifyReport(text []byte, roots *identity.Bundle) ([]controlplane.Statement, error) {
	html, inner := false, text
	if _, after, found := bytes.Cut(text, []byte(embedOpen)); found {
		html = true
		inner, _, _ = bytes.Cut(after, []byte(embedClose))
	}
	doc := &auditReport{}
	if err := json.Unmarshal(inner, doc); err != nil {
		return nil, fmt.Errorf("read it: %w", err)
	}
	statements, err := doc.statements()
	if err != nil {
		return nil, err
	}
	for i := range statements {
		id, err := doc.Statements[i].Verify(roots, statements[i].Now)
		if err != nil {
			return nil, fmt.Errorf("statement %d: %w", i+1, err)
		}
		if id.Namespace() != settings.Namespace || id.ServiceAccount() != controlplane.Signer || id.TrustDomain() != statements[i].TrustDomain {
			return nil, fmt.Errorf("statement %d was signed by %s, which is not the control plane", i+1, id)
		}
	}
	again, err := doc.encode(html)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(again, text) {
		why := "the statements hold, but the file around them is not what they say"
		if statements[0].Version != version.Version {
			why += fmt.Sprintf(", as podseal %s writes it. The mesh was at %s then: check it with a podseal of that version", version.Version, statements[0].Version)
		}
		return nil, errors.New(why)
	}
	return statements, nil
}

func readAll(name string, in io.Reader) ([]byte, error) {
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }() // it was only read
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, maxReport+1))
	if err == nil && len(text) > maxReport {
		err = fmt.Errorf("%s has more than %d bytes", name, maxReport)
	}
	return text, err
}

func (o *reportOptions) readRoots(ctx context.Context, k *kube) (*identity.Bundle, error) {
	if o.roots != "" {
		text, err := os.ReadFile(o.roots)
		if err != nil {
			return nil, codedError{err, exitBadInput}
		}
		roots, err := identity.ParseBundle(text)
		if err != nil {
			return nil, codedError{fmt.Errorf("%s: %w", o.roots, err), exitBadInput}
		}
		return roots, nil
	}
	c, _, err := k.client(io.Discard)
	if err != nil {
		return nil, err
	}
	var published corev1.ConfigMap
	if err := c.Get(ctx, client.ObjectKey{Namespace: settings.Namespace, Name: "istio-ca-root-cert"}, &published); err != nil {
		return nil, lookError("read the roots of the mesh (--roots FILE names others)", err)
	}
	return identity.ParseBundle([]byte(published.Data["root-cert.pem"]))
}

// reportContent is what the page shows.
type reportContent struct {
	Statements  []controlplane.Statement
	View        *controlplane.View
	Links       []reportLink
	Exceptions  []controlplane.Exception
	Unobserved  []string // in the mesh, and no proxy tells of them
	Outside     []string // not in the mesh
	Reporting   int
	Plain, Sure int // links with plaintext, and with nothing but mutual TLS
	Own         int // links to ports of proxies themselves
}

type reportLink struct {
	edges.Link
	Secured, Refused string
	Bytes            uint64
}

// seenBy says whose word there is for a share: one end's alone, or "" for both.
func seenBy(reporters []string) string {
	if len(reporters) != 1 {
		return ""
	}
	return "seen by " + reporters[0] + " only"
}

func contentOf(statements []controlplane.Statement) *reportContent {
	c := &reportContent{Statements: statements}
	views := make([]*controlplane.View, len(statements))
	for i := range statements {
		view := statements[i].View // joining changes it
		views[i] = &view
		for _, e := range statements[i].Exceptions {
			if !slices.Contains(c.Exceptions, e) {
				c.Exceptions = append(c.Exceptions, e)
			}
		}
	}
	c.View = controlplane.JoinViews(views)
	seen := coverageOf(c.View)
	c.Reporting, c.Unobserved, c.Outside = seen.observed, seen.silent, seen.outside
	for _, l := range edges.Build(c.View.Edges) {
		_, n := l.Of(func(*edges.Share) bool { return true })
		c.Links = append(c.Links, reportLink{l, strings.TrimPrefix(secured(&l), "√ "), refusals(l.Refusals()), n})
		switch {
		case l.OwnPort:
			c.Own++
		case l.State == edges.StateMutualTLS:
			c.Sure++
		case l.State == edges.StatePlaintext, l.State == edges.StateMixed:
			c.Plain++
		}
	}
	return c
}
