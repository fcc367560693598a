package proof

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The ring that the kernel writes packets to: 32 MB, in blocks that hold several
// packets of any size that segmentation offload makes. A block is handed over when
// it is full, or after a while.
const (
	blockSize   = 1 << 20
	blocks      = 32
	frameSize   = 1 << 11 // of no meaning to version 3, but checked
	retireAfter = 20      // milliseconds
)

// Sniffer records what passes the network interfaces of a namespace. It is a packet
// socket with its ring (Linux, packet(7), TPACKET_V3).
type Sniffer struct {
	fd     int
	ring   []byte
	next   int // block
	missed uint64
}

// OpenSniffer begins to record what passes all interfaces of this thread's network
// namespace but loopback: nothing is missed from then on, as long as Run keeps up.
// It needs CAP_NET_RAW.
func OpenSniffer() (*Sniffer, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket (it takes CAP_NET_RAW): %w", err)
	}
	s := &Sniffer{fd: fd}
	if err := s.arm(); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// Run writes the packets to w, as pcap (raw IP, nanoseconds), until ctx ends, and
// closes the sniffer. Packets that w was too slow for are in lost.
func (s *Sniffer) Run(ctx context.Context, w io.Writer) (lost uint64, err error) {
	defer func() { err = errors.Join(err, s.close()) }()
	if err := writePcapHeader(w); err != nil {
		return 0, err
	}
	for ctx.Err() == nil {
		if _, err := s.poll(5 * retireAfter); err != nil {
			return s.lost(), err
		}
		if err := s.drain(w); err != nil {
			return s.lost(), err
		}
	}
	// what has come by now is handed over when the time of its block is up
	if _, err := unix.Poll(nil, 2*retireAfter); err != nil && !errors.Is(err, syscall.EINTR) {
		return s.lost(), fmt.Errorf("wait for the last packets: %w", err)
	}
	err = s.drain(w)
	return s.lost(), err
}

func (s *Sniffer) arm() error {
	if err := unix.SetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3); err != nil {
		return fmt.Errorf("set packet version: %w", err)
	}
	req := unix.TpacketReq3{
		Block_size: blockSize, Block_nr: blocks, Frame_size: frameSize, Frame_nr: blockSize / frameSize * blocks,
		Retire_blk_tov: retireAfter,
	}
	if err := unix.SetsockoptTpacketReq3(s.fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &req); err != nil {
		return fmt.Errorf("make packet ring: %w", err)
	}
	ring, err := unix.Mmap(s.fd, 0, blockSize*blocks, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map packet ring: %w", err)
	}
	s.ring = ring
	if err := unix.Bind(s.fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL)}); err != nil {
		return fmt.Errorf("bind packet socket: %w", err)
	}
	return nil
}

func networkOrder(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

func (s *Sniffer) close() error {
	var err error
	if s.ring != nil {
		err = unix.Munmap(s.ring)
		s.ring = nil
	}
	return errors.Join(err, unix.Close(s.fd))
}

// poll waits for at most so many milliseconds.
func (s *Sniffer) poll(ms int) (int, error) {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}, ms)
	if err != nil && !errors.Is(err, syscall.EINTR) {
		return 0, fmt.Errorf("wait for packets: %w", err)
	}
	return max(n, 0), nil
}

// lost is how many packets found no room in the ring. Asking sets the kernel's
// count to zero.
func (s *Sniffer) lost() uint64 {
	if stats, err := unix.GetsockoptTpacketStatsV3(s.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
		s.missed += uint64(stats.Drops)
	}
	return s.missed
}

// drain writes all packets of the blocks that the kernel has handed over.
func (s *Sniffer) drain(w io.Writer) error {
	for range blocks {
		block := s.ring[s.next*blockSize:][:blockSize]
		head := (*unix.TpacketBlockDesc)(unsafe.Pointer(&block[0])) //nolint:gosec // as packet(7) lays it out; checked to be inside of the block
		info := (*unix.TpacketHdrV1)(unsafe.Pointer(&head.Hdr[0]))  //nolint:gosec // as packet(7) lays it out; checked to be inside of the block
		if atomic.LoadUint32(&info.Block_status)&unix.TP_STATUS_USER == 0 {
			return nil
		}
		if err := writeBlock(w, block, info); err != nil {
			return err
		}
		atomic.StoreUint32(&info.Block_status, unix.TP_STATUS_KERNEL)
		s.next = (s.next + 1) % blocks
	}
	return nil
}

func writeBlock(w io.Writer, block []byte, info *unix.TpacketHdrV1) error {
	at := int(info.Offset_to_first_pkt)
	for range info.Num_pkts {
		if at+unix.SizeofTpacket3Hdr+unix.SizeofSockaddrLinklayer > len(block) {
			return errors.New("read packet ring: a packet outside of its block")
		}
		h := (*unix.Tpacket3Hdr)(unsafe.Pointer(&block[at]))                        //nolint:gosec // as packet(7) lays it out; checked to be inside of the block
		from := (*unix.RawSockaddrLinklayer)(unsafe.Pointer(&block[at+alignedHdr])) //nolint:gosec // as packet(7) lays it out; checked to be inside of the block
		start, end := at+int(h.Net), at+int(h.Net)+int(h.Snaplen)
		if end > len(block) {
			return errors.New("read packet ring: a packet outside of its block")
		}
		if from.Hatype != unix.ARPHRD_LOOPBACK && (from.Protocol == networkOrder(unix.ETH_P_IP) || from.Protocol == networkOrder(unix.ETH_P_IPV6)) {
			if err := writePacket(w, h, block[start:end]); err != nil {
				return err
			}
		}
		at += int(h.Next_offset)
	}
	return nil
}

// alignedHdr is where the address stands behind a packet's header.
const alignedHdr = (unix.SizeofTpacket3Hdr + 15) &^ 15

func writePcapHeader(w io.Writer) error {
	h := binary.LittleEndian.AppendUint32(nil, 0xa1b23c4d)
	h = binary.LittleEndian.AppendUint16(h, 2)
	h = binary.LittleEndian.AppendUint16(h, 4)
	h = append(h, make([]byte, 8)...)
	h = binary.LittleEndian.AppendUint32(h, maxPacket)
	h = binary.LittleEndian.AppendUint32(h, linkRaw)
	if _, err := w.Write(h); err != nil {
		return fmt.Errorf("write capture: %w", err)
	}
	return nil
}

func writePacket(w io.Writer, h *unix.Tpacket3Hdr, b []byte) error {
	var head [packetHeader]byte
	binary.LittleEndian.PutUint32(head[0:], h.Sec)
	binary.LittleEndian.PutUint32(head[4:], h.Nsec)
	binary.LittleEndian.PutUint32(head[8:], uint32(len(b)))
	binary.LittleEndian.PutUint32(head[12:], h.Len)
	for _, part := range [][]byte{head[:], b} {
		if _, err := w.Write(part); err != nil {
			return fmt.Errorf("write capture: %w", err)
		}
	}
	return nil
}
