package capture

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// injected is the command line of an injected pod (contract 5.13); later
// arguments replace earlier ones.
func injected(more ...string) []string {
	args := []string{"-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", "", "-b", "*", "-d", "15090,15021,15020"}
	return append(args, more...)
}

func noEnv(string) string { return "" }

func mustParse(t *testing.T, args []string, getenv func(string) string) Config {
	t.Helper()
	o, err := Parse(args, getenv, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	return o.Config
}

// TestBuild compares the rules of each annotation with a file: contract
// 5.26-5.30, in nft's own notation.
func TestBuild(t *testing.T) {
	for name, tt := range map[string]struct {
		args   []string
		env    map[string]string
		family string
	}{
		"default":                        {args: injected()},
		"ipv4-only":                      {args: injected(), family: "4"},
		"ipv6-only":                      {args: injected(), family: "6"},
		"exclude-inbound-ports":          {args: injected("-d", "15090,15021,15020,9000,9001,9000"), family: "4"},
		"include-inbound-ports":          {args: injected("-b", "8080,8443", "-d", "8080"), family: "4"},
		"include-inbound-ports-none":     {args: injected("-b", ""), family: "4"},
		"exclude-outbound-ports":         {args: injected("-o", "3306,5432"), family: "4"},
		"include-outbound-ports":         {args: injected("-q", "9092", "-i", "10.0.0.0/8")},
		"include-outbound-ip-ranges":     {args: injected("-i", "10.0.0.0/8,172.16.0.1/32,fd00::/8")},
		"include-outbound-ip-loopback":   {args: injected("-i", "127.1.0.0/16"), family: "4"},
		"include-outbound-nothing":       {args: injected("-i", "")},
		"exclude-outbound-ip-ranges":     {args: injected("-x", "169.254.169.254/32,10.1.2.3/16,fd00:1::/64")},
		"exclude-outbound-ip-ranges-v4":  {args: injected("-x", "169.254.169.254/32,fd00:1::/64"), family: "4"},
		"exclude-interfaces":             {args: injected("-c", "net1,cali+"), family: "4"},
		"kubevirt-interfaces":            {args: injected("-k", "k6t-eth0"), family: "4"},
		"kubevirt-interfaces-ip-ranges":  {args: injected("-k", "k6t-eth0", "-i", "10.0.0.0/8"), family: "4"},
		"proxy-user":                     {args: injected("-u", "2000", "-g", "3000"), family: "4"},
		"host-ipv4-loopback-cidr":        {args: injected(), env: map[string]string{"ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR": "127.0.0.1/8"}, family: "4"},
		"ports":                          {args: injected("-p", "16001", "-z", "16006"), family: "4"},
		"inbound-excludes-always-ours":   {args: injected("-d", "9000"), family: "4"},
		"owner-groups-all-is-no-setting": {args: injected(), env: map[string]string{"ISTIO_OUTBOUND_OWNER_GROUPS": "*", "INVALID_DROP": "false"}, family: "4"},
	} {
		t.Run(name, func(t *testing.T) {
			c := mustParse(t, tt.args, func(name string) string { return tt.env[name] })
			c.IPv4, c.IPv6 = tt.family != "6", tt.family != "4"
			r := Build(c)
			golden(t, name, r.Text())
			if c.IPv6 != (len(r.loopback) == 1) {
				t.Errorf("addresses of lo: %v, IPv6 is %v", r.loopback, c.IPv6)
			}
		})
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name+".nft")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

// TestOrder states the order of contract 5.26 in words, apart from the files.
func TestOrder(t *testing.T) {
	c := Default()
	c.IPv6 = false
	c.ExcludeOutboundPorts = []uint16{25}
	c.ExcludeOutboundCIDRs = []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}
	c.IncludeOutboundPorts = []uint16{9092}
	want := []string{
		"tcp dport 25 return", "udp dport 25 return", // 6
		`oifname "lo" ip saddr 127.0.0.6 return`,                                                       // 7
		`oifname "lo" ip daddr != 127.0.0.1 tcp dport != 15008 meta skuid 1337 jump istio_in_redirect`, // 8
		`oifname "lo" meta skuid != 1337 return`, "meta skuid 1337 return",                             // 9
		`oifname "lo" ip daddr != 127.0.0.1 tcp dport != 15008 meta skgid 1337 jump istio_in_redirect`, // 10
		`oifname "lo" meta skgid != 1337 return`, "meta skgid 1337 return",
		"ip daddr 127.0.0.1 return", "ip daddr 10.9.0.0/16 return", // 11
		"tcp dport 9092 jump istio_redirect", "jump istio_redirect", // 12
	}
	var got []string
	r := Build(c)
	for _, rule := range r.chains[slices.IndexFunc(r.chains, func(c chain) bool { return c.name == chainOut })].rules {
		got = append(got, rule.text())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("istio_output (-want +got):\n%s", diff)
	}
}

// TestBuildIsDeterministic holds because Verify compares with a second Build.
func TestBuildIsDeterministic(t *testing.T) {
	a, b := Build(Default()), Build(Default())
	if a.Text() != b.Text() {
		t.Error("two builds differ")
	}
	for i, c := range a.chains {
		for j, r := range c.rules {
			if encode(r.exprs()) != encode(b.chains[i].rules[j].exprs()) {
				t.Errorf("chain %s rule %d: expressions differ", c.name, j)
			}
		}
	}
}

func TestParseLongNames(t *testing.T) {
	long := []string{
		"--envoy-port", "1", "--inbound-capture-port=2", "--proxy-uid", "3", "--proxy-gid", "4",
		"--istio-inbound-interception-mode", "REDIRECT", "--istio-service-cidr", "10.0.0.0/8",
		"--istio-service-exclude-cidr", "10.1.0.0/16", "--istio-inbound-ports", "5", "--istio-local-exclude-ports", "6",
		"--istio-outbound-ports", "7", "--istio-local-outbound-ports-exclude", "8",
		"--kube-virt-interfaces", "k", "--istio-exclude-interfaces", "e", "--redirect-dns=false",
	}
	short := []string{
		"-p", "1", "-z", "2", "-u", "3", "-g", "4", "-m", "REDIRECT", "-i", "10.0.0.0/8", "-x", "10.1.0.0/16",
		"-b", "5", "-d", "6", "-q", "7", "-o", "8", "-k", "k", "-c", "e",
	}
	if diff := cmp.Diff(mustParse(t, short, noEnv), mustParse(t, long, noEnv), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("short and long names mean different things:\n%s", diff)
	}
	if diff := cmp.Diff(Default(), mustParse(t, injected(), noEnv), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("the arguments of an injected pod are not the default:\n%s", diff)
	}
}

// TestParseFaults: all at once, each by name; TPROXY, DNS capture and capture by
// group, which are not done, are refused.
func TestParseFaults(t *testing.T) {
	env := map[string]string{
		"ISTIO_META_DNS_CAPTURE": "true", "ISTIO_OUTBOUND_OWNER_GROUPS": "java", "INVALID_DROP": "1",
		"ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR": "localhost",
	}
	_, err := Parse([]string{
		"-p", "0", "-z", "http", "-u", "proxy", "-g", "-1", "-m", "TPROXY", "-i", "10.0.0.0", "-x", "*", "-b", "*,80",
		"-d", "70000", "-q", "*", "-o", "1-2", "--redirect-dns", "--drop-invalid", "rest",
	}, func(name string) string { return env[name] }, t.Output())
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		`--envoy-port: "0"`, `--inbound-capture-port: "http"`, `--proxy-uid: "proxy"`, `--proxy-gid: "-1"`, "TPROXY is not honoured",
		`--istio-service-cidr: "10.0.0.0"`, `--istio-service-exclude-cidr: "*"`, `--istio-inbound-ports: "*"`,
		`--istio-local-exclude-ports: "70000"`, `--istio-outbound-ports: "*"`, `--istio-local-outbound-ports-exclude: "1-2"`,
		"--redirect-dns is not honoured", "--drop-invalid is not honoured", `["rest"]`,
		"ISTIO_META_DNS_CAPTURE", "ISTIO_OUTBOUND_OWNER_GROUPS=", "INVALID_DROP", "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not mention %s", want)
		}
	}
	if t.Failed() {
		t.Log(err)
	}
	if _, err := Parse([]string{"--surprise"}, noEnv, t.Output()); err == nil || !strings.Contains(err.Error(), "surprise") {
		t.Errorf("unknown flag: %v", err)
	}
}

func TestValidateFaults(t *testing.T) {
	c := Config{ExcludeInterfaces: []string{"", "a/b", "sixteen-bytes-xx", "+", "."}, ExcludeOutboundCIDRs: []netip.Prefix{{}}}
	err := c.Validate()
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		"proxy port is 0", "inbound port is 0", "both 0", "uid is 0", "gid is 0", "loopback range", "address range",
		`"a/b"`, `"sixteen-bytes-xx"`, "every interface", "neither IPv4 nor IPv6",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not mention %s: %v", want, err)
		}
	}
	if err := Default().Validate(); err != nil {
		t.Errorf("default: %v", err)
	}
}

// FuzzParse: no value makes Parse or Build panic, and what Parse accepts can be
// compiled.
func FuzzParse(f *testing.F) {
	f.Add("*", "", "*", "15090,15021", "9092", "25", "eth0", "k6t-+")
	f.Add("10.0.0.0/8,::/0", "fd00::/8", "80,443", "", "", "", "", "")
	f.Fuzz(func(t *testing.T, i, x, b, d, q, o, c, k string) {
		opts, err := Parse([]string{"-i", i, "-x", x, "-b", b, "-d", d, "-q", q, "-o", o, "-c", c, "-k", k}, noEnv, t.Output())
		if err != nil {
			return
		}
		for _, ch := range Build(opts.Config).chains {
			for _, r := range ch.rules {
				if code := encode(r.exprs()); code == "" || strings.ContainsAny(r.text(), "\n\r") {
					t.Errorf("rule %q", r.text())
				}
			}
		}
	})
}
