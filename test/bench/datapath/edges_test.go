package datapath

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
)

// A chain is accounting if any of its functions is. Functions are found in the program
// by address, as it is run or as it is in the file.
func TestAccountingShare(t *testing.T) {
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	names, err := symbols(own)
	if err != nil {
		t.Fatal(err)
	}
	relay, counting := uint64(reflect.ValueOf(TestAccountingShare).Pointer()), uint64(reflect.ValueOf(isAccounting).Pointer())
	if got := names.name(counting); got != "podseal.io/podseal/test/bench/datapath.isAccounting" {
		t.Fatal(got)
	}
	accounting = append(accounting, "datapath.isAccounting")
	t.Cleanup(func() { accounting = accounting[:len(accounting)-1] })
	for _, moved := range []uint64{0, names.begin - names.offset} {
		var b strings.Builder
		for range 5 {
			b.WriteString(strings.Repeat(fmt.Sprintf("\t%x\n\t%x\n\n", names.begin-moved, relay-moved), 199))
			fmt.Fprintf(&b, "  ffffffff81000000\n\t%x\n\t%x\n\n", counting-moved, relay-moved)
		}
		if got, n, err := accountingShare(b.String(), names); err != nil || got != 0.005 || n != 1000 {
			t.Errorf("moved by %x: %v of %d, %v", moved, got, n, err)
		}
	}
	for _, bad := range []string{"", "x\n", strings.Repeat("\tffffffff81000000\n\n", 5000)} {
		if got, _, err := accountingShare(bad, names); err == nil {
			t.Errorf("%.20q: %v", bad, got)
		}
	}
}
