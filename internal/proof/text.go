package proof

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
)

// WriteText writes the summary as a table: one line per connection, with the bytes
// to the server and back, and a line of what was found and what was missed.
func (s Summary) WriteText(w io.Writer) error {
	var b bytes.Buffer
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "CLIENT\tSERVER\tWHAT\tTLS\tSERVER NAME\tRECORDS\tTLS BYTES\tPLAINTEXT BYTES\tEND")
	for _, f := range s.Flows {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%d + %d\t%d + %d\t%s\n",
			f.Client, f.Server, f.what(), f.tls(), cmp.Or(printable(f.SNI), "-"), f.records(),
			f.Sent.TLSBytes, f.Received.TLSBytes, f.Sent.PlainBytes, f.Received.PlainBytes, f.end())
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write summary: %w", err)
	}
	fmt.Fprintf(&b, "%d packets, %d of TCP, %d connections\n", s.Packets, s.TCP, len(s.Flows))
	found := s.Needles()
	for _, n := range slices.Sorted(maps.Keys(found)) {
		fmt.Fprintf(&b, "found %q %d times\n", n, found[n])
	}
	if n := s.Undecoded + s.Fragments; n > 0 {
		fmt.Fprintf(&b, "%d packets were not looked into\n", n)
	}
	if _, err := w.Write(b.Bytes()); err != nil {
		return fmt.Errorf("write summary: %w", err)
	}
	return nil
}

// String returns what WriteText writes.
func (s Summary) String() string {
	var b strings.Builder
	_ = s.WriteText(&b) // a Builder takes everything
	return b.String()
}

func (f Flow) what() string {
	if f.Kind == Plaintext {
		return "plaintext (" + f.Protocol + ")"
	}
	return f.Kind.String()
}

// tls returns version and group.
func (f Flow) tls() string {
	if f.TLSVersion == 0 {
		return "-"
	}
	text := strings.TrimPrefix(tls.VersionName(f.TLSVersion), "TLS ")
	if f.Group != 0 {
		text += " " + f.Group.String()
	}
	return text
}

func (f Flow) records() string {
	all := f.Records()
	if len(all) == 0 {
		return "-"
	}
	var parts []string
	for _, r := range slices.Sorted(maps.Keys(all)) {
		parts = append(parts, fmt.Sprintf("%d %s", all[r], r))
	}
	return strings.Join(parts, ", ")
}

func (f Flow) end() string {
	text := "-"
	if f.Reset {
		text = "reset by " + f.ResetBy
	}
	if !f.Complete() {
		text += fmt.Sprintf("; %d bytes missed", f.Sent.LostBytes+f.Received.LostBytes+f.Sent.Unsorted+f.Received.Unsorted)
	}
	return text
}

// printable keeps what a peer wrote from steering a terminal.
func printable(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\ufffd' }) {
		return fmt.Sprintf("%q", s)
	}
	return s
}
