package capture

import (
	"encoding/binary"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// What the kernel's connection tracking is told of its timeouts
// (linux/netfilter/nfnetlink_cttimeout.h).
const (
	timeoutDefaultSet = 3 // IPCTNL_MSG_TIMEOUT_DEFAULT_SET

	timeoutL3Proto  = 2 // CTA_TIMEOUT_L3PROTO
	timeoutL4Proto  = 3 // CTA_TIMEOUT_L4PROTO
	timeoutData     = 4 // CTA_TIMEOUT_DATA
	timeoutTCPClose = 8 // CTA_TIMEOUT_TCP_CLOSE
)

// resetRemembered is how long a connection that was reset is remembered, in seconds,
// where ForgetResets was called: no longer than until a first segment is sent again
// (RFC 6298, 2.1). It is the least that the kernel takes.
const resetRemembered = 1

// ForgetResets lets the kernel's connection tracking forget a connection that was reset
// after one second rather than ten, in the network namespace of the calling thread. So
// long does the guard hold up a new connection that has the addresses and ports of that
// one and another owner.
//
// It is for speed alone: the guard holds without it. It may be repeated, needs
// CAP_NET_ADMIN, and a kernel with CONFIG_NF_CT_NETLINK_TIMEOUT; /proc/sys, which says
// the same, can't be written from within a pod.
func ForgetResets() error {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK_TIMEOUT<<8|timeoutDefaultSet, unix.NLM_F_ACK)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	req.AddData(nl.NewRtAttr(timeoutL3Proto, nl.BEUint16Attr(unix.AF_INET))) // TCP has one for both families
	req.AddData(nl.NewRtAttr(timeoutL4Proto, []byte{unix.IPPROTO_TCP}))
	data := nl.NewRtAttr(timeoutData|unix.NLA_F_NESTED, nil)
	data.AddRtAttr(timeoutTCPClose, binary.BigEndian.AppendUint32(nil, resetRemembered))
	req.AddData(data)
	if _, err := req.Execute(unix.NETLINK_NETFILTER, 0); err != nil {
		return fmt.Errorf("shorten how long connection tracking remembers resets: %w", err)
	}
	return nil
}
