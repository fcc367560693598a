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

// nackText is the text that rejects the named resources of a response of
// so many.
func nackText(rejected map[string]error, of int) string {
	b := fmt.Appendf(nil, "%d of %d resources rejected", len(rejected), of)
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
	return string(b)
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
