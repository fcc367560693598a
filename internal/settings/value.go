package settings

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
)

const trustDomainWant = "write lower-case letters, digits, dots, dashes and underscores, at most 255"

func isTrustDomain(s string) bool {
	return regexp.MustCompile(`^[a-z0-9._-]{1,255}$`).MatchString(s)
}

func isDomain(s string) bool { return len(validation.IsDNS1123Subdomain(s)) == 0 }

// show is a value in one short line of JSON.
func show(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return "?"
	}
	const limit = 60
	s := string(b)
	if len(s) <= limit {
		return s
	}
	cut := limit
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}

func (p *parser) text(path string, v any) (string, bool) {
	s, ok := v.(string)
	if !ok {
		p.fault(path, v, "write a string")
	}
	return s, ok
}

func (p *parser) oneOf(path string, v any, values ...string) string {
	s, ok := v.(string)
	if !ok || !slices.Contains(values, s) {
		p.fault(path, v, "write "+strings.Join(values, " or "))
		return ""
	}
	return s
}

func (p *parser) boolean(path string, v any, out *bool) {
	b, ok := v.(bool)
	if !ok {
		p.fault(path, v, "write true or false")
	}
	*out = b
}

func (p *parser) duration(path string, v any, out *time.Duration) {
	s, ok := v.(string)
	d, err := time.ParseDuration(s)
	if !ok || err != nil || !regexp.MustCompile(`^[0-9]+(s|m|h)$`).MatchString(s) {
		p.fault(path, v, "write a whole number followed by s, m or h, such as 1h; 0s means never")
		return
	}
	*out = d
}

// revision reads a version of Istio such as 1.27, whose control plane labels call
// v1x27 (contract 5.3).
func (p *parser) revision(path string, v any) {
	s, _ := v.(string)
	if n, isNumber := v.(json.Number); isNumber {
		s = n.String()
	}
	if !regexp.MustCompile(`^[0-9]{1,4}\.[0-9]{1,4}$`).MatchString(s) {
		p.fault(path, v, `write a version such as "1.27"`)
		return
	}
	if r := "v" + strings.ReplaceAll(s, ".", "x"); !slices.Contains(p.out.Revisions, r) {
		p.out.Revisions = append(p.out.Revisions, r)
	}
}

// secret reads text that must never be shown. Its content is checked later,
// with the other parts of the CA.
func (p *parser) secret(path string, v any, out *string) {
	s, ok := v.(string)
	if !ok {
		p.faults = append(p.faults, fault{path, "write a string with PEM in it"})
		return
	}
	*out = s
}

func (p *parser) list(path string, v any, each func(path string, v any)) {
	list, ok := v.([]any)
	if !ok {
		p.fault(path, v, "write a list")
		return
	}
	for i, item := range list {
		each(fmt.Sprintf("%s[%d]", path, i), item)
	}
}

func (p *parser) prefixes(path string, v any, out *[]netip.Prefix) {
	p.list(path, v, func(path string, v any) {
		s, _ := v.(string)
		prefix, err := netip.ParsePrefix(s)
		if err != nil {
			p.fault(path, v, "write a range such as 10.0.0.0/8 or fd00::/8, a single address as 10.1.2.3/32")
			return
		}
		*out = append(*out, prefix.Masked())
	})
}

// includedRanges is prefixes, where the default (all of IPv4) and "*" mean all.
func (p *parser) includedRanges(path string, v any, out *[]netip.Prefix) {
	if list, ok := v.([]any); ok && len(list) == 0 {
		p.fault(path, v, "nothing would be captured; leave it out for everything")
		return
	} else if len(list) == 1 && (list[0] == "*" || list[0] == "0.0.0.0/0") {
		return
	}
	p.prefixes(path, v, out)
}

func (p *parser) ports(path string, v any, out *[]uint16) {
	p.list(path, v, func(path string, v any) {
		s, ok := v.(string)
		if n, isNumber := v.(json.Number); isNumber {
			s, ok = n.String(), true
		}
		port, err := strconv.ParseUint(s, 10, 16)
		if !ok || err != nil || port == 0 {
			p.fault(path, v, `write a port from "1" to "65535"`)
			return
		}
		if !slices.Contains(*out, uint16(port)) {
			*out = append(*out, uint16(port))
		}
	})
}

// ParseQuantity reads a Kubernetes quantity above zero. It refuses exponents of
// more than two digits beforehand: the parser of Kubernetes needs seconds and
// gigabytes for 1e-100000000.
func ParseQuantity(s string) (resource.Quantity, error) {
	if !regexp.MustCompile(`^[0-9.]{1,30}([eE][+-]?[0-9]{1,2}|[numkMGTPE]|[KMGTPE]i)?$`).MatchString(s) {
		return resource.Quantity{}, fmt.Errorf("%q is not a quantity", s)
	}
	q, err := resource.ParseQuantity(s)
	if err == nil && q.Sign() <= 0 {
		err = fmt.Errorf("%q is not above zero", s)
	}
	return q, err
}

func (p *parser) quantity(path string, v any, out *string) {
	s, ok := v.(string)
	if n, isNumber := v.(json.Number); isNumber {
		s, ok = n.String(), true
	}
	q, err := ParseQuantity(s)
	if !ok || err != nil {
		p.fault(path, v, "write a Kubernetes quantity above zero, such as 100m or 128Mi")
		return
	}
	*out = q.String()
}

// checkLimits refuses limits below requests, which the API server would refuse
// later, in every pod.
func (p *parser) checkLimits(path, requestCPU, limitCPU, requestMemory, limitMemory string) {
	for _, r := range []struct{ name, request, limit string }{{"cpu", requestCPU, limitCPU}, {"memory", requestMemory, limitMemory}} {
		request, err1 := resource.ParseQuantity(r.request)
		limit, err2 := resource.ParseQuantity(r.limit)
		if err1 == nil && err2 == nil && limit.Cmp(request) < 0 {
			p.fault("settings."+path+".static.limits."+r.name, r.limit, "less than the request, which is "+r.request)
		}
	}
}

func (p *parser) nodeSelector(path string, v any, out *map[string]string) {
	object, ok := v.(map[string]any)
	if !ok {
		p.fault(path, v, "write an object of labels")
		return
	}
	*out = map[string]string{}
	for key, value := range object {
		s, isText := value.(string)
		switch {
		case len(validation.IsQualifiedName(key)) > 0:
			p.fault(at(path, key), value, "the name is not a label name")
		case !isText || len(validation.IsValidLabelValue(s)) > 0:
			p.fault(at(path, key), value, `write a label value; "" matches the empty value`)
		}
		(*out)[key] = s
	}
}

func (p *parser) tolerations(path string, v any, out *[]Toleration) {
	p.list(path, v, func(path string, v any) {
		object, ok := v.(map[string]any)
		if !ok {
			p.fault(path, v, "write an object with key, operator, value and effect")
			return
		}
		var t Toleration
		for key, value := range object {
			full := at(path, key)
			switch key {
			case "key":
				t.Key, _ = p.text(full, value)
				if t.Key != "" && len(validation.IsQualifiedName(t.Key)) > 0 {
					p.fault(full, value, "write the key of a taint")
				}
			case "operator":
				t.Operator = p.oneOf(full, value, "Equal", "Exists")
			case "value":
				t.Value, _ = p.text(full, value)
			case "effect":
				t.Effect = p.oneOf(full, value, "NoSchedule", "PreferNoSchedule", "NoExecute")
			case "tolerationSeconds":
				if n, isInt := integer(value); isInt {
					t.TolerationSeconds = &n
				} else {
					p.fault(full, value, "write a whole number of seconds")
				}
			default:
				p.faults = append(p.faults, fault{full, "unknown; a toleration has key, operator, value, effect and tolerationSeconds"})
			}
		}
		p.checkToleration(path, t, v)
		*out = append(*out, t)
	})
}

// checkToleration refuses what the API server would refuse later, in the
// Deployment, where the user wouldn't look for it.
func (p *parser) checkToleration(path string, t Toleration, v any) {
	switch {
	case t.Key == "" && t.Operator != "Exists":
		p.fault(path, v, "without a key the operator must be Exists")
	case t.Operator == "Exists" && t.Value != "":
		p.fault(path, v, "with the operator Exists there is no value")
	case t.TolerationSeconds != nil && t.Effect != "NoExecute":
		p.fault(path, v, "tolerationSeconds needs the effect NoExecute")
	}
}

func integer(v any) (int64, bool) {
	n, ok := v.(json.Number)
	if !ok {
		return 0, false
	}
	i, err := n.Int64()
	return i, err == nil
}

// nearest is the candidate that differs least from s, "" if none is near.
func nearest(s string, candidates []string) string {
	best, least := "", max(2, len(s)/4)+1
	for _, c := range candidates {
		if d := distance(strings.ToLower(s), strings.ToLower(c)); d < least {
			best, least = c, d
		}
	}
	return best
}

// distance is Levenshtein's, in bytes. Long names are not compared: they are
// no slip of the finger.
func distance(a, b string) int {
	const longest = 128
	if len(a) > longest || len(b) > longest {
		return longest
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
