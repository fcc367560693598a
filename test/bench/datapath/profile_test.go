package datapath

import (
	"strings"
	"testing"
)

// TestParseProfile: shares by kind of work, as perf report prints them.
func TestParseProfile(t *testing.T) {
	const said = `
 20.00%  ; 20        ;podseal-proxy       ;[.] crypto/internal/fips140/aes/gcm.gcmAesEnc.abi0
 30.50%  ; 30        ;[kernel.kallsyms]   ;[k] rep_movs_alternative
 10.00%  ; 10        ;[kernel.kallsyms]   ;[k] tcp_sendmsg_locked
  5.00%  ; 5        ;[kernel.kallsyms]   ;[k] finish_task_switch.isra.0
  3.00%  ; 3        ;[kernel.kallsyms]   ;[k] do_syscall_64
  1.00%  ; 1        ;[kernel.kallsyms]   ;[k] _raw_spin_unlock_irqrestore
  9.50%  ; 9        ;podseal-proxy       ;[.] runtime.mallocgc
  8.00%  ; 8        ;podseal-proxy       ;[.] runtime.findRunnable
  7.00%  ; 7        ;podseal-proxy       ;[.] podseal.io/podseal/internal/proxy.(*relay).copy
  6.00%  ; 6        ;podseal-proxy       ;[.] crypto/tls.(*Conn).handshakeContext
`
	p, err := parseProfile(said)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]float64{
		workCipher: 20, workCopy: 30.5, workNetwork: 10, workSwitch: 5, workKernel: 3, workIRQ: 1, workMemory: 9.5, workRuntime: 8, workProxy: 7, workHandshake: 6,
	}
	for _, k := range kindsOfWork() {
		if got := p.Shares[k] * 100; got < want[k]-0.01 || got > want[k]+0.01 {
			t.Errorf("%s: %.2f, want %.2f", k, got, want[k])
		}
	}
	if len(p.Hottest) != 10 || p.Hottest[1].Symbol != "rep_movs_alternative" || p.Samples != 99 {
		t.Errorf("%d samples, hottest: %v", p.Samples, p.Hottest)
	}
	r := Report{Profiles: []Profile{p}, Notes: []string{"bulk up: no profile"}}
	if page := r.ProfileMarkdown(); !strings.Contains(page, "| 99 | 20 % |") || !strings.Contains(page, "\n- bulk up: no profile.\n") {
		t.Error(page)
	}
	for _, bad := range []string{"", "x;1;y;z", "10.00%;x;podseal-proxy;[.] main.main", "10.00%;5;podseal-proxy;[.] 0x00000000004a1b2c"} {
		if _, err := parseProfile(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}
