package netns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"podseal.io/podseal/internal/capture"
)

// deadline is when a connection that should have worked by then is given up.
const deadline = 10 * time.Second

// apply puts the rules for these arguments into the pod and verifies them.
func apply(t testing.TB, p *pod, args ...string) capture.Rules {
	t.Helper()
	opts, err := capture.Parse(args, func(string) string { return "" }, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	var rules capture.Rules
	p.root(t, func() error {
		if opts.IPv6, err = capture.HasIPv6(os.DirFS("/proc")); err != nil {
			return err
		}
		rules = capture.Build(opts.Config)
		if err := capture.Apply(t.Context(), rules); err != nil {
			return err
		}
		return capture.Verify(t.Context(), rules)
	})
	return rules
}

// serve answers each connection to port with what describe says of it, once.
func serve(t testing.TB, p *pod, port int, describe func(*net.TCPConn) string) {
	t.Helper()
	var l net.Listener
	p.do(t, sidecar, func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf("[::]:%d", port))
		return err
	})
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, describe(c.(*net.TCPConn)))
			c.Close()
		}
	}()
}

// serveAll makes p a pod whose proxy and applications say where a connection went:
// "out DST" and "in DST" for the proxy's ports, "NAME from ADDR" for the others.
func serveAll(t testing.TB, p *pod, name string) {
	t.Helper()
	proxy := func(way string) func(*net.TCPConn) string {
		return func(c *net.TCPConn) string {
			dst, err := capture.OriginalDst(c)
			if err != nil {
				return way + " " + err.Error()
			}
			return way + " " + dst.String()
		}
	}
	serve(t, p, 15001, proxy("out"))
	serve(t, p, 15006, proxy("in"))
	for _, port := range []int{8080, 8081, 15008, 15020, 15021, 15090} {
		serve(t, p, port, func(c *net.TCPConn) string {
			peer := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
			return name + " from " + peer.String()
		})
	}
}

// dial connects from p and returns what it was told.
func dial(t testing.TB, p *pod, as identity, from, to string) string {
	t.Helper()
	d := net.Dialer{Timeout: deadline}
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	return told(t, p, as, d, to)
}

// told connects with d and returns what it was told, or why not.
func told(t testing.TB, p *pod, as identity, d net.Dialer, to string) string {
	t.Helper()
	var answer []byte
	err := p.try(as, func() error {
		c, err := d.DialContext(t.Context(), "tcp", to)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(d.Timeout)); err != nil {
			return err
		}
		answer, err = io.ReadAll(c)
		return err
	})
	if err != nil {
		return err.Error()
	}
	return string(answer)
}

// way is one connection and where it must end.
type way struct {
	name string
	from *pod
	as   identity
	src  string
	dst  string
	want string
}

func check(t *testing.T, ways []way) {
	t.Helper()
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			if got := dial(t, w.from, w.as, w.src, w.dst); got != w.want {
				t.Errorf("to %s as %v: got %q, want %q", w.dst, w.as, got, w.want)
			}
		})
	}
}

// TestCapture: the arguments of an injected pod. a is captured, b is not.
func TestCapture(t *testing.T) {
	a, b := newPods(t)
	serveAll(t, a, "a")
	serveAll(t, b, "b")
	apply(t, a, "-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", "", "-b", "*", "-d", "15090,15021,15020")
	check(t, []way{
		{"5.26-12 outbound", a, app, "", "10.77.0.2:8080", "out 10.77.0.2:8080"},
		{"5.28 outbound IPv6", a, app, "", "[fd77::2]:8080", "out [fd77::2]:8080"},
		{"outbound to an address that is nowhere", a, app, "", "10.77.0.99:80", "out 10.77.0.99:80"},
		{"3.71 outbound of the proxy", a, sidecar, "", "10.77.0.2:8080", "b from 10.77.0.1"},
		{"3.71 outbound of the proxy IPv6", a, sidecar, "", "[fd77::2]:8080", "b from fd77::1"},
		{"3.71 by uid", a, sidecarUID, "", "10.77.0.2:8080", "b from 10.77.0.1"},
		{"3.71 by gid", a, sidecarGID, "", "10.77.0.2:8080", "b from 10.77.0.1"},
		{"5.26-1 outbound has no exception for the tunnel", a, app, "", "10.77.0.2:15008", "out 10.77.0.2:15008"},

		{"3.69 proxy to its own pod", a, sidecar, "", "10.77.0.1:8080", "in 10.77.0.1:8080"},
		{"3.69 proxy to its own pod IPv6", a, sidecar, "", "[fd77::1]:8080", "in [fd77::1]:8080"},
		{"5.26-10 the same by gid", a, sidecarGID, "", "10.77.0.1:8080", "a from 10.77.0.1"},
		{"5.26-8 not for the tunnel", a, sidecar, "", "10.77.0.1:15008", "a from 10.77.0.1"},
		{"5.26-8 proxy to localhost", a, sidecar, "", "127.0.0.1:8080", "a from 127.0.0.1"},
		{"5.26-8 proxy to localhost IPv6", a, sidecar, "", "[::1]:8080", "a from ::1"},
		{"5.27 proxy to the rest of 127/8", a, sidecar, "", "127.0.0.5:8080", "in 127.0.0.5:8080"},
		{"5.26-7 proxy to the application", a, sidecar, "127.0.0.6", "10.77.0.1:8080", "a from 127.0.0.6"},
		{"5.28 proxy to the application IPv6", a, sidecar, "::6", "[fd77::1]:8080", "a from ::6"},

		{"3.70 application to its own pod", a, app, "", "10.77.0.1:8080", "a from 10.77.0.1"},
		{"3.70 application to its own pod IPv6", a, app, "", "[fd77::1]:8080", "a from fd77::1"},
		{"3.70 application to localhost", a, app, "", "127.0.0.1:8080", "a from 127.0.0.1"},
		{"3.70 application to localhost IPv6", a, app, "", "[::1]:8080", "a from ::1"},
		{"3.70 application to the rest of 127/8", a, app, "", "127.0.0.5:8080", "a from 127.0.0.1"},

		{"5.26-4 inbound", b, app, "", "10.77.0.1:8080", "in 10.77.0.1:8080"},
		{"5.26-4 inbound IPv6", b, app, "", "[fd77::1]:8080", "in [fd77::1]:8080"},
		{"inbound where nobody listens", b, app, "", "10.77.0.1:9", "in 10.77.0.1:9"},
		{"inbound from the other proxy", b, sidecar, "", "10.77.0.1:8080", "in 10.77.0.1:8080"},
		{"5.26-4 inbound metrics", b, app, "", "10.77.0.1:15090", "a from 10.77.0.2"},
		{"5.26-4 inbound health", b, app, "", "10.77.0.1:15021", "a from 10.77.0.2"},
		{"5.26-4 inbound agent", b, app, "", "10.77.0.1:15020", "a from 10.77.0.2"},
		{"5.26-4 inbound agent IPv6", b, app, "", "[fd77::1]:15020", "a from fd77::2"},
		{"5.26-1 inbound tunnel", b, app, "", "10.77.0.1:15008", "a from 10.77.0.2"},
		{"B5 to the proxy itself", a, app, "", "127.0.0.1:15001", "out read original destination: connection was not redirected"},
	})
}

// TestAnnotations: contract 5.27, 5.29, 5.30 and the interfaces.
func TestAnnotations(t *testing.T) {
	a, b := newPods(t)
	serveAll(t, a, "a")
	serveAll(t, b, "b")
	for _, tt := range []struct {
		args []string
		ways []way
	}{
		{[]string{"-o", "8081"}, []way{
			{"excluded port", a, app, "", "10.77.0.2:8081", "b from 10.77.0.1"},
			{"excluded port IPv6", a, app, "", "[fd77::2]:8081", "b from fd77::1"},
			{"other port", a, app, "", "10.77.0.2:8080", "out 10.77.0.2:8080"},
		}},
		{[]string{"-x", "10.77.0.2/32,fd77::2/128", "-q", "8081"}, []way{
			{"excluded range", a, app, "", "10.77.0.2:8080", "b from 10.77.0.1"},
			{"excluded range IPv6", a, app, "", "[fd77::2]:8080", "b from fd77::1"},
			{"5.30 excludes win", a, app, "", "10.77.0.2:8081", "b from 10.77.0.1"},
			{"other address", a, app, "", "10.77.0.3:8080", "out 10.77.0.3:8080"},
		}},
		{[]string{"-i", "10.99.0.0/16,fd99::/16", "-q", "8081"}, []way{
			{"not included", a, app, "", "10.77.0.2:8080", "b from 10.77.0.1"},
			{"not included IPv6", a, app, "", "[fd77::2]:8080", "b from fd77::1"},
			{"5.30 included port", a, app, "", "10.77.0.2:8081", "out 10.77.0.2:8081"},
			{"5.30 included port IPv6", a, app, "", "[fd77::2]:8081", "out [fd77::2]:8081"},
		}},
		{[]string{"-i", "10.77.0.0/29"}, []way{
			{"included range", a, app, "", "10.77.0.2:8080", "out 10.77.0.2:8080"},
			{"range of the other family only", a, app, "", "[fd77::2]:8080", "b from fd77::1"},
		}},
		{[]string{"-d", "8081"}, []way{
			{"excluded inbound", b, app, "", "10.77.0.1:8081", "a from 10.77.0.2"},
			{"our own are always excluded", b, app, "", "10.77.0.1:15020", "a from 10.77.0.2"},
			{"other inbound", b, app, "", "10.77.0.1:8080", "in 10.77.0.1:8080"},
		}},
		{[]string{"-b", "8081", "-d", "8081"}, []way{
			{"5.29 included inbound", b, app, "", "10.77.0.1:8081", "in 10.77.0.1:8081"},
			{"5.29 not included inbound", b, app, "", "10.77.0.1:8080", "a from 10.77.0.2"},
		}},
		{[]string{"-b", ""}, []way{
			{"5.29 nothing inbound", b, app, "", "10.77.0.1:8080", "a from 10.77.0.2"},
			{"5.29 outbound still", a, app, "", "10.77.0.2:8080", "out 10.77.0.2:8080"},
		}},
		{[]string{"-c", "eth0"}, []way{
			{"excluded interface in", b, app, "", "10.77.0.1:8080", "a from 10.77.0.2"},
			{"excluded interface out", a, app, "", "10.77.0.2:8080", "b from 10.77.0.1"},
		}},
		{[]string{"-c", "et+"}, []way{
			{"excluded interfaces in", b, app, "", "10.77.0.1:8080", "a from 10.77.0.2"},
			{"excluded interfaces out IPv6", a, app, "", "[fd77::2]:8080", "b from fd77::1"},
		}},
		{[]string{"-k", "eth0"}, []way{
			{"rerouted interface", b, app, "", "10.77.0.1:8080", "out 10.77.0.1:8080"},
			{"rerouted interface IPv6", b, app, "", "[fd77::1]:8080", "out [fd77::1]:8080"},
		}},
		{[]string{"-u", "2000", "-g", "3000"}, []way{
			{"proxy of another user", a, identity{2000, 5}, "", "10.77.0.2:8080", "b from 10.77.0.1"},
			{"proxy of another group", a, identity{5, 3000}, "", "10.77.0.2:8080", "b from 10.77.0.1"},
			{"1337 is anyone then", a, sidecar, "", "10.77.0.2:8080", "out 10.77.0.2:8080"},
		}},
		{[]string{"-p", "15006", "-z", "15001"}, []way{
			{"other ports", a, app, "", "10.77.0.2:8080", "in 10.77.0.2:8080"},
		}},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			apply(t, a, tt.args...)
			check(t, tt.ways)
		})
	}
}

// TestUDP: what isn't TCP is not touched.
// Contract 3.2.
func TestUDP(t *testing.T) {
	a, b := newPods(t)
	apply(t, a)
	for _, tt := range []struct {
		name       string
		from, to   *pod
		addr, peer netip.Addr
	}{
		{"outbound", a, b, b.v4, a.v4},
		{"outbound IPv6", a, b, b.v6, a.v6},
		{"inbound", b, a, a.v4, b.v4},
		{"inbound IPv6", b, a, a.v6, b.v6},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var server net.PacketConn
			tt.to.do(t, app, func() (err error) {
				server, err = net.ListenPacket("udp", netip.AddrPortFrom(tt.addr, 5353).String())
				return err
			})
			defer server.Close()
			tt.from.do(t, app, func() error {
				c, err := net.Dial("udp", server.LocalAddr().String())
				if err != nil {
					return err
				}
				defer c.Close()
				_, err = c.Write([]byte("ping"))
				return err
			})
			server.SetDeadline(time.Now().Add(deadline))
			b := make([]byte, 16)
			n, from, err := server.ReadFrom(b)
			if err != nil || string(b[:n]) != "ping" || from.(*net.UDPAddr).AddrPort().Addr() != tt.peer {
				t.Errorf("got %q from %v, %v", b[:n], from, err)
			}
		})
	}
}

// TestIPv6Off: without IPv6 it is left out, and what there is is captured.
func TestIPv6Off(t *testing.T) {
	a, b := newPods(t)
	serveAll(t, a, "a")
	a.root(t, func() error { return os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0) })
	rules := apply(t, a)
	if strings.Contains(rules.Text(), "ip6") {
		t.Errorf("rules mention IPv6:\n%s", rules.Text())
	}
	check(t, []way{
		{"outbound", a, app, "", "10.77.0.2:8080", "out 10.77.0.2:8080"},
		{"inbound", b, app, "", "10.77.0.1:8080", "in 10.77.0.1:8080"},
		{"3.70 own pod", a, app, "", "10.77.0.1:8080", "a from 10.77.0.1"},
	})
}

// TestApplyAgain: the second time changes nothing, other rules replace the first,
// other tables are left alone, open connections live on.
// Contract 5.34.
func TestApplyAgain(t *testing.T) {
	a, b := newPods(t)
	serveAll(t, b, "b")
	var l net.Listener
	a.do(t, sidecar, func() (err error) { l, err = net.Listen("tcp", "[::]:15001"); return err })
	defer l.Close()
	nft(t, a, "add table inet other")
	apply(t, a)
	before := nft(t, a, "list ruleset")

	var client net.Conn
	a.do(t, app, func() (err error) { client, err = net.Dial("tcp", "10.77.0.2:8080"); return err })
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()

	apply(t, a)
	if diff := cmp.Diff(before, nft(t, a, "list ruleset")); diff != "" {
		t.Errorf("the second Apply changed the rules:\n%s", diff)
	}
	apply(t, a, "-b", "")
	apply(t, a)
	if diff := cmp.Diff(before, nft(t, a, "list ruleset")); diff != "" {
		t.Errorf("there and back is not the same:\n%s", diff)
	}

	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	server.SetDeadline(time.Now().Add(deadline))
	if _, err := server.Read(make([]byte, 1)); err != nil {
		t.Errorf("open connection: %v", err)
	}
	if dst, err := capture.OriginalDst(server.(*net.TCPConn)); err != nil || dst.String() != "10.77.0.2:8080" {
		t.Errorf("original destination of an open connection: %s, %v", dst, err)
	}
}

// TestVerify: whatever is taken away or added is named.
func TestVerify(t *testing.T) {
	a, _ := newPods(t)
	for _, tt := range []struct {
		name, want string
		change     func() error
	}{
		{"a rule", `want "oifname \"lo\" ip saddr 127.0.0.6 return", the kernel has "oifname \"lo\" ip6 saddr ::6 return"`, func() error {
			return onChain("istio_output", func(c *nftables.Conn, rules []*nftables.Rule) error { return c.DelRule(rules[0]) })
		}},
		{"the last rule", `want "jump istio_redirect", the kernel has nothing`, func() error {
			return onChain("istio_output", func(c *nftables.Conn, rules []*nftables.Rule) error { return c.DelRule(rules[len(rules)-1]) })
		}},
		{"a rule too many", "the kernel has a rule that is not ours", func() error { return run("nft", "insert rule inet podseal output accept") }},
		{"the table", "table inet podseal is missing", func() error { return run("nft", "delete table inet podseal") }},
		{"switched off", "switched off", func() error { return run("nft", "add table inet podseal { flags dormant; }") }},
		{"the address", "lo has no address ::6/128", func() error { return run("ip", "-6 addr del ::6/128 dev lo") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rules := apply(t, a)
			a.root(t, tt.change)
			err := a.try(identity{}, func() error { return capture.Verify(t.Context(), rules) })
			var mismatch *capture.MismatchError
			if !errors.As(err, &mismatch) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v\nwant %s", err, tt.want)
			}
		})
	}
	rules := apply(t, a)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := capture.Apply(ctx, rules); !errors.Is(err, context.Canceled) {
		t.Errorf("Apply after its context ended: %v", err)
	}
}

// TestWithoutCapability: the error says what is missing, and is no mismatch.
func TestWithoutCapability(t *testing.T) {
	a, _ := newPods(t)
	rules := apply(t, a)
	var applyErr, verifyErr error
	a.root(t, func() error {
		// of this thread only, which ends with f
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 1337, 1337, 1337); errno != 0 {
			return errno
		}
		applyErr, verifyErr = capture.Apply(t.Context(), rules), capture.Verify(t.Context(), rules)
		return nil
	})
	if applyErr == nil || !strings.Contains(applyErr.Error(), "CAP_NET_ADMIN is needed") {
		t.Errorf("Apply: %v", applyErr)
	}
	var mismatch *capture.MismatchError
	if verifyErr == nil || errors.As(verifyErr, &mismatch) || !strings.Contains(verifyErr.Error(), "not permitted") {
		t.Errorf("Verify: %v", verifyErr)
	}
	apply(t, a)
}

// TestTextMatchesNft: nft, which knows nothing of us, shows the rules as we do.
func TestTextMatchesNft(t *testing.T) {
	a, _ := newPods(t)
	for _, args := range [][]string{
		nil,
		{"-d", "15090,15021,15020,9000"},
		{"-b", "8080,8443"},
		{"-b", ""},
		{"-o", "3306,5432", "-q", "9092"},
		{"-i", "10.0.0.0/8,172.16.0.1/32,0.0.0.0/0,192.168.128.0/17,fd00::/8,fd00:1:2:3::/63,::/0"},
		{"-x", "169.254.169.254/32,10.1.2.3/16,fd00:1::/64"},
		{"-c", "net1,cali+", "-k", "k6t-eth0"},
		{"-k", "k6t-eth0", "-i", "10.0.0.0/8"},
		{"-u", "2000", "-g", "3000"},
	} {
		rules := apply(t, a, args...)
		if diff := cmp.Diff(rules.Text(), nft(t, a, "list table inet podseal")); diff != "" {
			t.Errorf("%q (-ours +nft):\n%s", args, diff)
		}
	}
	many := make([]string, 2000)
	for i := range many {
		many[i] = fmt.Sprint(20000 + i)
	}
	apply(t, a, "-d", strings.Join(many, ","), "-o", strings.Join(many, ","))
}

// onChain changes a chain of our table in the namespace of the thread.
func onChain(name string, change func(*nftables.Conn, []*nftables.Rule) error) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := &nftables.Table{Name: "podseal", Family: nftables.TableFamilyINet}
	rules, err := c.GetRules(table, &nftables.Chain{Name: name, Table: table})
	if err != nil {
		return err
	}
	if err := change(c, rules); err != nil {
		return err
	}
	return c.Flush()
}

func run(program, args string) error {
	out, err := exec.Command(program, strings.Fields(args)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", program, args, err, out)
	}
	return nil
}

// nft returns what the nft program says in the pod. Only tests need the program.
func nft(t testing.TB, p *pod, args string) string {
	t.Helper()
	var out []byte
	p.root(t, func() (err error) {
		if out, err = exec.Command("nft", strings.Fields(args)...).CombinedOutput(); err != nil {
			err = fmt.Errorf("nft %s: %w: %s", args, err, out)
		}
		return err
	})
	return string(out)
}

// TestOwnersDontShareAnEntry: what the kernel remembers of the proxy's connection, which
// was let through, must not let through one of an application that has the same
// addresses and ports a moment later; nor must the proxy be redirected to itself. Until
// the entry is forgotten such a connection waits: 10 s after a reset, or one second
// where that could be had. Contract 3.71.
func TestOwnersDontShareAnEntry(t *testing.T) {
	t.Parallel()
	t.Run("as the kernel has it", func(t *testing.T) {
		t.Parallel()
		a, b := newPods(t)
		ownersDontShare(t, a, b, 3*deadline)
	})
	t.Run("resets are forgotten", func(t *testing.T) {
		t.Parallel()
		a, b := newPods(t)
		a.root(t, capture.ForgetResets)
		a.root(t, capture.ForgetResets) // as often as one likes
		ownersDontShare(t, a, b, 2*time.Second)
	})
}

// ownersDontShare has connections of one owner reset and made again by the other, which
// must succeed within so long.
func ownersDontShare(t *testing.T, a, b *pod, within time.Duration) {
	resetting := func(c *net.TCPConn) string {
		if err := c.SetLinger(0); err != nil {
			t.Error(err)
		}
		return ""
	}
	const byServer, byProxy = 8080, 8081 // who resets
	serve(t, a, 15001, func(c *net.TCPConn) string {
		dst, err := capture.OriginalDst(c)
		if err != nil || dst.Port() == byProxy {
			return resetting(c)
		}
		return "out " + dst.String()
	})
	serve(t, b, byServer, resetting)
	serve(t, b, byProxy, func(*net.TCPConn) string { return "b" })
	apply(t, a)
	var all sync.WaitGroup
	for _, tt := range []struct {
		first, second identity
		own, to, want string
	}{
		{sidecar, app, "10.77.0.1:40000", "10.77.0.2:8080", "out 10.77.0.2:8080"},
		{sidecar, app, "[fd77::1]:40000", "[fd77::2]:8080", "out [fd77::2]:8080"},
		{app, sidecar, "10.77.0.1:40000", "10.77.0.2:8081", "b"},
		{app, sidecar, "[fd77::1]:40000", "[fd77::2]:8081", "b"},
	} {
		all.Go(func() {
			if got := dialFrom(t, a, tt.first, tt.own, tt.to, deadline); !strings.Contains(got, "reset") {
				t.Errorf("%s as %v: %s", tt.to, tt.first, got)
			}
			if got := dialFrom(t, a, tt.second, tt.own, tt.to, time.Second/2); !strings.Contains(got, "timeout") {
				t.Errorf("%s as %v, while the entry is there: %s", tt.to, tt.second, got)
			}
			if got := dialFrom(t, a, tt.second, tt.own, tt.to, within); got != tt.want {
				t.Errorf("%s as %v, after it: %s", tt.to, tt.second, got)
			}
		})
	}
	all.Wait()
}

// dialFrom is dial from a certain port, for so long.
func dialFrom(t testing.TB, p *pod, as identity, from, to string, long time.Duration) string {
	t.Helper()
	d := net.Dialer{Timeout: long, LocalAddr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from)), Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
	}}
	return told(t, p, as, d, to)
}
