package capture

import (
	"encoding/binary"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// What kernels of different age say of lo.
func TestSegmentOf(t *testing.T) {
	limit := func(attr uint16, size uint32) syscall.NetlinkRouteAttr {
		return syscall.NetlinkRouteAttr{Attr: syscall.RtAttr{Type: attr}, Value: binary.NativeEndian.AppendUint32(nil, size)}
	}
	for name, tt := range map[string]struct {
		attrs []syscall.NetlinkRouteAttr
		want  int
	}{
		"no limits":         {nil, 65536},
		"before Linux 6.3":  {[]syscall.NetlinkRouteAttr{limit(unix.IFLA_GSO_MAX_SIZE, 524280)}, 65536},
		"as it is at first": {[]syscall.NetlinkRouteAttr{limit(unix.IFLA_GSO_MAX_SIZE, 65536), limit(unix.IFLA_GSO_IPV4_MAX_SIZE, 65536)}, 65536},
		"widened":           {[]syscall.NetlinkRouteAttr{limit(unix.IFLA_GSO_MAX_SIZE, 524280), limit(unix.IFLA_GSO_IPV4_MAX_SIZE, 524280), limit(unix.IFLA_MTU, 1)}, 524280},
		"the smaller":       {[]syscall.NetlinkRouteAttr{limit(unix.IFLA_GSO_MAX_SIZE, 524280), limit(unix.IFLA_GSO_IPV4_MAX_SIZE, 16384)}, 16384},
		"cut short":         {[]syscall.NetlinkRouteAttr{{Attr: syscall.RtAttr{Type: unix.IFLA_GSO_MAX_SIZE}, Value: []byte{1, 2, 3}}}, 65536},
	} {
		if got := segmentOf(tt.attrs); got != tt.want {
			t.Errorf("%s: %d, want %d", name, got, tt.want)
		}
	}
}

// Anybody may ask.
func TestLoopbackSegment(t *testing.T) {
	if n, err := LoopbackSegment(); n <= 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}
