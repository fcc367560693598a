package walkthrough

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"time"

	"podseal.io/podseal/internal/proof"
)

const rootNamespace = "d8-istio"

// outcome is what a call is expected to come to.
type outcome int

const (
	encrypted outcome = iota
	plaintext
	refused
)

func (o outcome) String() string {
	return [...]string{"200 over mutual TLS, no plaintext byte", "200 in plaintext, with the proxy's headers", "connection reset, no HTTP status"}[o]
}

// call is one request of the walkthrough.
type call struct {
	name, line string
	want       outcome
	body       bool // the page is fetched, not only its head
	packet     bool // show a packet, as the document does
}

// needles must never be on the wire of an encrypted call. (The name of the
// service is: it stands in the SNI, as every mesh of this kind sends it.)
var needles = []string{"GET / HTTP", "HEAD / HTTP", "HTTP/1.1", "Welcome to nginx", "istio-envoy", "User-Agent", "user-agent"}

// promised are the response headers that the document shows to a client
// outside the mesh.
func (w *walk) promised() []string {
	return []string{
		"server: istio-envoy",
		"x-envoy-upstream-service-time: ",
		"x-envoy-decorator-operation: webserver.test-istio-mtls.svc." + w.domain + ":80/*",
	}
}

// call makes one call under a capture and appends its row.
func (w *walk) call(ctx context.Context, c call) {
	row := Row{Call: c.name, Expect: c.want.String()}
	fault := func(format string, args ...any) { row.Faults = append(row.Faults, fmt.Sprintf(format, args...)) }
	defer func() {
		w.print(row)
		w.report.Rows = append(w.report.Rows, row)
	}()
	fmt.Fprintf(w.Out, "\n$ tcpdump -A -v -i any host %s and port 80      # on node %s, during the call\n$ %s\n", w.podIP, w.node, c.line)
	capture, err := w.Cluster.Capture(ctx, w.node, "host "+w.podIP+" and port 80")
	if err != nil {
		fault("capture: %v", err)
		return
	}
	since := time.Now().Add(-time.Second)
	out, code, err := w.Cluster.Shell(ctx, c.line)
	packets, stopErr := capture.Stop()
	fmt.Fprint(w.Out, tidy(out))
	if err != nil || stopErr != nil {
		fault("call: %v", errors.Join(err, stopErr))
		return
	}
	if c.packet {
		w.excerpt(ctx, packets)
	}
	w.judgeAnswer(c, out, code, fault)
	row.Wire = w.judgeWire(c, packets, fault)
	row.Record, row.From = w.judgeRecord(ctx, c, since, fault)
}

// tidy is what a client printed, without the page, which says little, and without
// kubectl's remark that the walk has no terminal to give it.
func tidy(out string) string {
	var b strings.Builder
	page := 0
	for line := range strings.Lines(out) {
		switch {
		case strings.HasPrefix(line, "Unable to use a TTY"):
		case page > 0 || strings.HasPrefix(line, "<!DOCTYPE html>"):
			page += len(line)
			if strings.HasPrefix(line, "</html>") {
				fmt.Fprintf(&b, "<!DOCTYPE html> ... (%d bytes)\n", page)
				page = 0
			}
		default:
			b.WriteString(line)
		}
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

// excerpt prints the first packet with content that the webserver sent, as
// tcpdump shows it in the document.
func (w *walk) excerpt(ctx context.Context, packets []byte) {
	const withContent = "(ip[2:2] - ((ip[0]&0xf)<<2)) - ((tcp[12]&0xf0)>>2) != 0"
	cmd := exec.CommandContext(ctx, "tcpdump", "-n", "-A", "-v", "-c", "1", "-r", "-", "src host "+w.podIP+" and "+withContent)
	cmd.Stdin = bytes.NewReader(packets)
	out, err := cmd.Output()
	if err != nil || len(out) == 0 {
		return // nothing came back: the connection was reset
	}
	fmt.Fprintln(w.Out, "\n   tcpdump: the first packet of the answer")
	for i, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		if i == 12 {
			fmt.Fprintln(w.Out, "   | ...")
			break
		}
		line = strings.TrimSpace(line)
		fmt.Fprintf(w.Out, "   | %s\n", line[:min(len(line), 140)])
	}
}

type faultFunc func(format string, args ...any)

// judgeAnswer looks at what the client printed.
func (w *walk) judgeAnswer(c call, out string, code int, fault faultFunc) {
	if c.want == refused {
		if code == 0 || strings.Contains(out, "HTTP/1") {
			fault("the client got an answer (exit code %d)", code)
		}
		if strings.Contains(c.line, "curl") && code != 56 {
			fault("curl's exit code is %d, want 56 (connection reset)", code)
		}
		return
	}
	if code != 0 || !strings.Contains(out, "200 OK") {
		fault("the client did not get 200 OK (exit code %d)", code)
	}
	if c.body && !strings.Contains(out, "Welcome to nginx") {
		fault("the client did not get the page")
	}
	if c.want == plaintext {
		for _, h := range w.promised() {
			if !strings.Contains(out, h) {
				fault("the client did not see %q", h)
			}
		}
	}
}

// judgeWire looks at what tcpdump saw between the client and the webserver's pod.
func (w *walk) judgeWire(c call, packets []byte, fault faultFunc) string {
	sum, err := proof.Read(bytes.NewReader(packets), proof.Options{Needles: needles})
	if err != nil {
		fault("read the capture: %v", err)
		return ""
	}
	server, err := netip.ParseAddr(w.podIP)
	if err != nil {
		fault("%v", err)
		return ""
	}
	flows := slices.DeleteFunc(slices.Clone(sum.Flows), func(f proof.Flow) bool {
		return f.Server != netip.AddrPortFrom(server, 80) || f.Kind == proof.Empty && !f.Reset // the end of an earlier one
	})
	if len(flows) == 0 {
		fault("no connection to %s:80 is in the capture (%d packets)", w.podIP, sum.Packets)
		return ""
	}
	var records int
	var tlsBytes, plain int64
	var reset bool
	whole := true
	kinds := map[string]bool{}
	for _, f := range flows {
		kinds[f.Kind.String()] = true
		for _, n := range f.Records() {
			records += n
		}
		tlsBytes += f.TLSBytes()
		plain += f.PlainBytes()
		reset = reset || f.Reset
		whole = whole && f.Complete()
	}
	var found []string
	for needle, n := range sum.Needles() {
		if n > 0 {
			found = append(found, needle)
		}
	}
	sealed := plain == 0 && len(found) == 0 && records > 0
	for kind := range kinds { // the proxies' connection may be an earlier call's, which is used again
		sealed = sealed && (kind == proof.MeshTLS.String() || kind == proof.UnknownTLS.String())
	}
	if c.want == encrypted && !sealed {
		fault("on the wire: %d plaintext bytes, %d TLS records, %v, found %q", plain, records, keys(kinds), found)
	}
	if !whole {
		fault("tcpdump lost packets of the connection, so nothing is proven")
	}
	if c.want == plaintext {
		for _, h := range w.promised() {
			if !bytes.Contains(packets, []byte(h)) {
				fault("%q is not on the wire", h)
			}
		}
	}
	if c.want == refused && !reset {
		fault("no connection was reset")
	}
	s := fmt.Sprintf("no TLS, %d B of plaintext", plain)
	if records > 0 {
		s = fmt.Sprintf("%d TLS records (%d B), %d B of plaintext", records, tlsBytes, plain)
	}
	if reset {
		s += ", reset"
	}
	return s
}

func keys(m map[string]bool) []string {
	var ks []string
	for k := range m {
		ks = append(ks, k)
	}
	slices.Sort(ks)
	return ks
}

// record is the proxy's own line about a connection.
type record struct {
	Time        time.Time `json:"time"`
	Message     string    `json:"msg"`
	Direction   string    `json:"direction"`
	Security    string    `json:"security"`
	Version     string    `json:"tls_version"`
	Group       string    `json:"tls_group"`
	SrcIdentity string    `json:"src_identity"`
	DstIdentity string    `json:"dst_identity"`
	Reason      string    `json:"reason"`
}

// judgeRecord looks at what the webserver's proxy says of the connection.
func (w *walk) judgeRecord(ctx context.Context, c call, since time.Time, fault faultFunc) (summary, from string) {
	r, ok := w.record(ctx, since)
	if !ok {
		fault("the webserver's proxy has no record of the connection")
		return "", ""
	}
	id := w.domain + "/ns/" + namespace + "/sa/default"
	asExpected := r.Reason == "plaintext_refused"
	switch c.want {
	case encrypted:
		asExpected = r.Security == "mutual_tls" && r.Version == "TLS 1.3" && r.Group == "X25519MLKEM768" && r.SrcIdentity == id && r.DstIdentity == id
	case plaintext:
		asExpected = r.Security == "plaintext" && r.SrcIdentity == ""
	case refused:
	}
	if !asExpected {
		fault("recorded as %+v", r)
	}
	return r.summary()
}

// summary is a record in a line, and who called whom if both are known.
func (r record) summary() (line, from string) {
	switch {
	case r.Reason != "":
		return r.Reason, ""
	case r.SrcIdentity == "":
		return r.Security + ", client unknown", ""
	}
	return fmt.Sprintf("%s, %s, %s", r.Security, r.Version, r.Group), r.SrcIdentity + " → " + r.DstIdentity
}

// record finds the last inbound record since a time. The proxy writes it when
// the connection ends, so it may take a moment.
func (w *walk) record(ctx context.Context, since time.Time) (record, bool) {
	line := fmt.Sprintf("kubectl -n %s logs deployments/webserver -c istio-proxy --since-time=%s", namespace, since.UTC().Format(time.RFC3339))
	for range 20 {
		out, _, err := w.Cluster.Shell(ctx, line)
		if err != nil {
			return record{}, false
		}
		var last record
		for l := range strings.Lines(out) {
			var r record
			if json.Unmarshal([]byte(l), &r) == nil && r.Message == "connection" && r.Direction == "inbound" && !r.Time.Before(since) {
				last = r
			}
		}
		if last.Message != "" {
			return last, true
		}
		time.Sleep(500 * time.Millisecond)
	}
	return record{}, false
}

// settle waits until a changed policy is in force: the outside client gets what
// is expected of it. What follows is judged by calls of their own.
func (w *walk) settle(ctx context.Context, want outcome) {
	start := time.Now()
	for range 50 {
		out, _, err := w.Cluster.Shell(ctx, getFromOutside)
		if err != nil || strings.Contains(out, "200 OK") == (want == plaintext) {
			fmt.Fprintf(w.Out, "(the proxy follows it after %.1f s)\n", time.Since(start).Seconds())
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	fmt.Fprintf(w.Out, "(the proxy does not follow it after %.1f s)\n", time.Since(start).Seconds())
}

// print shows a row below its call.
func (w *walk) print(r Row) {
	fmt.Fprintf(w.Out, "\n   on the wire         %s\n   the proxy's record  %s\n", r.Wire, r.Record)
	if r.From != "" {
		fmt.Fprintf(w.Out, "                       %s\n", r.From)
	}
	fmt.Fprintf(w.Out, "   expected            %s: %s\n", r.Expect, r.mark())
	for _, f := range r.Faults {
		fmt.Fprintf(w.Out, "   fault               %s\n", f)
	}
}

// Table prints the outcome of every call.
func (r Report) Table(w io.Writer) {
	if len(r.Rows) == 0 {
		return
	}
	fmt.Fprintf(w, "\n%-50s  %-4s  %-39s  %s\n", "CALL", "", "THE WEBSERVER'S PROXY SAYS", "ON THE WIRE")
	passed := 0
	for _, row := range r.Rows {
		fmt.Fprintf(w, "%-50s  %-4s  %-39s  %s\n", row.Call, row.mark(), row.Record, row.Wire)
		for _, f := range row.Faults {
			fmt.Fprintf(w, "    fault: %s\n", f)
		}
		if len(row.Faults) == 0 {
			passed++
		}
	}
	fmt.Fprintf(w, "\n%d of %d as expected.\n", passed, len(r.Rows))
}
