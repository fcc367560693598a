package xds

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// maxNackText bounds the text of a NACK, in bytes, and maxReason one reason.
const (
	maxNackText = 64 << 10
	maxReason   = 512
)

// appendNack writes the text that rejects the named resources of a response of
// so many.
func appendNack(b []byte, rejected map[string]error, of int) []byte {
	b = fmt.Appendf(b, "%d of %d resources rejected", len(rejected), of)
	for _, name := range slices.Sorted(maps.Keys(rejected)) {
		reason := strings.Join(strings.Fields(strings.ToValidUTF8(rejected[name].Error(), "?")), " ")
		if len(reason) > maxReason {
			reason = strings.ToValidUTF8(reason[:maxReason], "") + "…"
		}
		b = append(b, '\n')
		b = strconv.AppendQuote(b, name)
		b = append(b, ": "...)
		b = append(b, reason...)
	}
	return b
}

// parseNack returns the names that the text of a NACK rejects, or none if it
// names none.
func parseNack(text string) []string {
	var names []string
	for line := range strings.Lines(text) {
		quoted, err := strconv.QuotedPrefix(line)
		if err != nil || !strings.HasPrefix(line[len(quoted):], ": ") {
			continue
		}
		if name, err := strconv.Unquote(quoted); err == nil {
			names = append(names, name)
		}
	}
	return names
}
