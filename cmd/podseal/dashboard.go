package main

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"podseal.io/podseal/internal/analysis"
	"podseal.io/podseal/internal/controlplane"
	"podseal.io/podseal/internal/dashboard"
	"podseal.io/podseal/internal/edges"
	"podseal.io/podseal/internal/strict"
)

// sessionCookie lets the browser in that was given the address, and no other
// program or user of this machine.
const sessionCookie = "podseal"

type dashboardOptions struct {
	port      uint16
	noBrowser bool
}

func newDashboardCommand(s streams, k *kube) *cobra.Command {
	o := dashboardOptions{}
	cmd := &cobra.Command{
		Use:   "dashboard",
		Short: "Show the mesh in a browser",
		Long: `Open a page that the control plane serves: a live graph of who talks to whom, coloured by how that is
protected; tables; the way to STRICT; certificates; findings; each workload. It changes nothing.

The page is served on this machine's loopback address, to who has the address that is printed; what it
shows is what you may see with "podseal edges". Ctrl-C ends it.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), s, k) },
	}
	f := cmd.Flags()
	f.Uint16Var(&o.port, "port", 0, "port on loopback (default any that is free)")
	f.BoolVar(&o.noBrowser, "no-browser", false, "print the address only")
	return cmd
}

func (o *dashboardOptions) run(ctx context.Context, s streams, k *kube) error {
	l, err := k.look(ctx, s.err)
	if err != nil {
		return err
	}
	d := &dashboardServer{look: l, again: func(ctx context.Context) (*looker, error) { return k.look(ctx, io.Discard) }, key: rand.Text(), hooks: l.hooks(ctx), analyze: func(ctx context.Context) ([]analysis.Message, error) {
		o := analyzeOptions{all: true}
		in, err := o.input(ctx, streams{in: s.in, out: io.Discard, err: io.Discard}, k)
		if err != nil {
			return nil, err
		}
		return analysis.Analyze(*in), nil
	}}
	defer d.close()
	if _, err := d.data(ctx); err != nil { // whether it may be seen is said here, not in the browser
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", o.port))
	if err != nil {
		return err
	}
	d.host = listener.Addr().String()
	server := &http.Server{Handler: d, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	address := fmt.Sprintf("http://%s/?key=%s", d.host, d.key)
	fmt.Fprintf(s.out, "The dashboard is at\n  %s\nCtrl-C ends it.\n", address)
	if !o.noBrowser && s.ask {
		openBrowser(ctx, address)
	}
	select {
	case <-ctx.Done():
		_ = server.Close() // nothing is worth waiting for
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	case err := <-served:
		return err
	}
}

// openBrowser tries; the address was printed.
func openBrowser(ctx context.Context, address string) {
	program := "xdg-open"
	if runtime.GOOS == "darwin" {
		program = "open"
	}
	cmd := exec.CommandContext(ctx, program, address) //nolint:gosec // an address that was made here
	if cmd.Start() == nil {
		go func() { _ = cmd.Wait() }() // it ends with the program
	}
}

// dashboardServer is what the browser talks to: it lets in who has the key, and
// asks the control plane on his behalf.
type dashboardServer struct {
	host, key string
	again     func(context.Context) (*looker, error)

	mu   sync.Mutex // one question at a time
	look *looker

	hooks map[string]bool // what the API server calls

	analyze  func(context.Context) ([]analysis.Message, error)
	findings []analysis.Message // as of analyzed
	why      error              // there are none
	analyzed time.Time
}

// findingsEvery is how often the cluster is looked through for findings.
const findingsEvery = 30 * time.Second

// strictWindow is how far back the way to STRICT looks.
const strictWindow = 24 * time.Hour

func (d *dashboardServer) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.look.close()
}

func (d *dashboardServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Host != d.host: // a page elsewhere that has its name lead here
		http.Error(w, "this is not "+r.Host, http.StatusMisdirectedRequest)
		return
	case r.Method != http.MethodGet:
		http.Error(w, "only GET", http.StatusMethodNotAllowed)
		return
	}
	if key := r.URL.Query().Get("key"); d.isKey(key) {
		http.SetCookie(w, &http.Cookie{Name: sessionCookie, Value: d.key, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode}) //nolint:gosec // over loopback there is no TLS
		http.Redirect(w, r, "/", http.StatusSeeOther)
		return
	}
	cookie, err := r.Cookie(sessionCookie)
	if err != nil || !d.isKey(cookie.Value) {
		http.Error(w, "open the address that podseal dashboard has printed", http.StatusForbidden)
		return
	}
	if name := strings.TrimPrefix(r.URL.Path, "/"); name != dashboard.Data {
		d.page(w, r, name)
		return
	}
	doc, err := d.data(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(doc) // who asked is gone
}

func (d *dashboardServer) isKey(key string) bool {
	return subtle.ConstantTimeCompare([]byte(key), []byte(d.key)) == 1
}

// page passes a part of the page on, as the control plane serves it.
func (d *dashboardServer) page(w http.ResponseWriter, r *http.Request, name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	res, err := d.look.page(r.Context(), name)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer func() { _ = res.Body.Close() }() // it was only read
	for _, key := range []string{"Content-Type", "Content-Security-Policy", "X-Content-Type-Options", "Referrer-Policy", "Cache-Control"} {
		w.Header().Set(key, res.Header.Get(key))
	}
	w.WriteHeader(res.StatusCode)
	_, _ = io.Copy(w, io.LimitReader(res.Body, 4<<20)) // who asked is gone
}

// dashboardData is the document that the page draws.
type dashboardData struct {
	Replicas      string                   `json:"replicas"`
	Time          time.Time                `json:"time"`
	Pods          []controlplane.PodView   `json:"pods"`
	Proxies       []controlplane.ProxyView `json:"proxies"`
	Edges         edges.Graph              `json:"edges"`
	NotObserved   []string                 `json:"not_observed"`
	Strict        strict.Report            `json:"strict"`
	Findings      []analysis.Message       `json:"findings,omitempty"`
	FindingsError string                   `json:"findings_error,omitempty"`
}

// data asks all replicas, anew when they were exchanged meanwhile.
func (d *dashboardServer) data(ctx context.Context) (*dashboardData, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v, err := d.look.view(ctx, "", controlplane.StrictParts()...)
	if coded, ok := errors.AsType[codedError](err); ok && coded.code == exitUnavailable && ctx.Err() == nil {
		fresh, errAgain := d.again(context.WithoutCancel(ctx))
		if errAgain != nil {
			return nil, errAgain
		}
		d.look.close()
		d.look = fresh
		v, err = d.look.view(ctx, "", controlplane.StrictParts()...)
	}
	if err != nil {
		return nil, err
	}
	doc := &dashboardData{Replicas: v.Replica, Time: v.Now, Pods: v.Pods, Proxies: v.Proxies, Edges: edges.Build(v.Edges), NotObserved: coverageOf(v).notObserved}
	if time.Since(d.analyzed) > findingsEvery {
		d.findings, d.why = d.analyze(ctx)
		d.analyzed = time.Now()
	}
	doc.Findings = d.findings
	if d.why != nil {
		doc.FindingsError = d.why.Error()
	} else if doc.Findings == nil {
		doc.Findings = []analysis.Message{}
	}
	doc.Strict = strict.Judge(controlplane.StrictInput(v, strictWindow, d.hooks), func(string, string) bool { return true })
	if doc.Pods == nil {
		doc.Pods = []controlplane.PodView{}
	}
	if doc.Proxies == nil {
		doc.Proxies = []controlplane.ProxyView{}
	}
	return doc, nil
}
