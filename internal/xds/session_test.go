package xds

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/status"

	"podseal.io/podseal/internal/xds/xdspb"
)

var update = flag.Bool("update", false, "rewrite the expected parts of the transcripts")

// TestTranscripts plays the files in testdata: comments, and blocks of commands,
// `----` and what they give. The commands are in [world.run].
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("transcripts: %v, %d found", err, len(files))
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, want)
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func play(t *testing.T, script []byte) []byte {
	t.Helper()
	w := newWorld()
	var out bytes.Buffer
	expected := false
	lines := bufio.NewScanner(bytes.NewReader(script))
	var pending []string
	flush := func() {
		for _, line := range pending {
			out.WriteString(w.run(t, line))
		}
		pending = nil
	}
	for lines.Scan() {
		line := lines.Text()
		switch {
		case line == "----":
			fmt.Fprintln(&out, line)
			flush()
			expected = true
		case line == "" || strings.HasPrefix(line, "#"):
			expected = false
			fmt.Fprintln(&out, line)
		case expected:
		default:
			pending = append(pending, line)
			fmt.Fprintln(&out, line)
		}
	}
	if len(pending) > 0 {
		t.Fatalf("commands without ----: %q", pending)
	}
	return out.Bytes()
}

// world is a store, a stream and a clock that moves a second per command.
type world struct {
	store   *Store
	session *session
	now     time.Time
}

func newWorld() *world {
	return &world{store: NewStore(), session: newSession(), now: time.Unix(0, 0).UTC()}
}

// run executes one command and returns what it gives, in lines:
//
//	store TYPE NAME=BODY…     replaces the type
//	reconnect                 a new stream on the same store
//	limit BYTES               of a response
//	ask TYPE [sub=N,…] [unsub=N,…] [has=NAME:BODY,…] [nonce=N] [nack=NAME:REASON,…|nack=TEXT]
//	state                     what the server says of the stream
func (w *world) run(t *testing.T, line string) string {
	t.Helper()
	f := strings.Fields(line)
	w.now = w.now.Add(time.Second)
	ev := event{now: w.now}
	switch f[0] {
	case "store":
		all := map[string][]byte{}
		for _, kv := range f[2:] {
			name, body, _ := strings.Cut(kv, "=")
			all[name] = []byte(body)
		}
		if !w.store.Replace(f[1], all) {
			return "unchanged\n"
		}
	case "reconnect":
		w.session = newSession()
		return ""
	case "limit":
		n, err := strconv.Atoi(f[1])
		if err != nil {
			t.Fatal(err)
		}
		w.session.limit = n
		return ""
	case "state":
		return w.state()
	case "ask":
		ev.req = ask(t, f[1:])
	default:
		t.Fatalf("unknown command %q", line)
	}
	ev.view = w.store.view()
	responses, err := w.session.step(ev)
	if err != nil {
		return fmt.Sprintf("ends the stream: %s: %s\n", status.Code(err), status.Convert(err).Message())
	}
	if len(responses) == 0 {
		return "nothing to send\n"
	}
	var out strings.Builder
	for _, r := range responses {
		fmt.Fprintf(&out, "%s nonce=%s", r.GetTypeUrl(), r.GetNonce())
		for _, x := range r.GetResources() {
			fmt.Fprintf(&out, " %s=%s", x.GetName(), x.GetResource().GetValue())
		}
		if gone := r.GetRemovedResources(); len(gone) > 0 {
			fmt.Fprintf(&out, " removed=%s", strings.Join(gone, ","))
		}
		out.WriteByte('\n')
	}
	return out.String()
}

func ask(t *testing.T, f []string) *xdspb.DeltaDiscoveryRequest {
	t.Helper()
	req := &xdspb.DeltaDiscoveryRequest{TypeUrl: f[0]}
	for _, arg := range f[1:] {
		key, value, _ := strings.Cut(arg, "=")
		list := strings.Split(value, ",")
		switch key {
		case "sub":
			req.ResourceNamesSubscribe = list
		case "unsub":
			req.ResourceNamesUnsubscribe = list
		case "nonce":
			req.ResponseNonce = value
		case "has":
			req.InitialResourceVersions = map[string]string{}
			for _, kv := range list {
				name, body, _ := strings.Cut(kv, ":")
				req.InitialResourceVersions[name] = versionOf([]byte(body))
			}
		case "nack":
			rejected := map[string]error{}
			for _, kv := range list {
				if name, reason, ok := strings.Cut(kv, ":"); ok {
					rejected[name] = fmt.Errorf("%s", reason)
				}
			}
			req.ErrorDetail = &xdspb.Status{Code: 3, Message: value}
			if len(rejected) > 0 {
				req.ErrorDetail.Message = nackText(rejected, len(rejected))
			}
		default:
			t.Fatalf("unknown argument %q", arg)
		}
	}
	return req
}

func (w *world) state() string {
	var out strings.Builder
	types := w.session.types()
	for _, typeURL := range slices.Sorted(maps.Keys(types)) {
		st := types[typeURL]
		fmt.Fprintf(&out, "%s wildcard=%t names=%d sent=%d waiting=%t generation=%d", typeURL, st.Wildcard, st.Names, st.Sent, st.Waiting, st.Generation)
		if !st.LastAck.IsZero() {
			fmt.Fprintf(&out, " ack=%ds", st.LastAck.Unix())
		}
		if !st.LastNack.IsZero() {
			fmt.Fprintf(&out, " nack=%ds", st.LastNack.Unix())
		}
		if st.NackText != "" {
			fmt.Fprintf(&out, " text=%q", st.NackText)
		}
		if len(st.Rejected) > 0 {
			fmt.Fprintf(&out, " rejected=%s", strings.Join(st.Rejected, ","))
		}
		out.WriteByte('\n')
	}
	return out.String()
}
