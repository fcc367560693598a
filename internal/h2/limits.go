package h2

import "time"

// What a client may do beyond requests and their bodies. Each budget begins full and
// fills up again with time, since a connection may be open for months; the rate is
// far above what honest clients do, and cheap.
//
//   - resets: of streams by the client, or for a fault of its, before their response
//     has begun (CVE-2023-44487, CVE-2025-8671). Requests that are answered to their
//     end earn more, so that one of two may always be taken back;
//   - control: PING, SETTINGS and frames of unknown types, which are answered or
//     passed on (CVE-2019-9512, 9515), and PRIORITY (CVE-2019-9513);
//   - empty: DATA without content that ends nothing (CVE-2019-9518).
//
// WINDOW_UPDATEs are paid for by what is sent to the client (CVE-2019-9511):
// updatesPerFrame for each frame of DATA, and freeUpdates for each request.
const (
	resetsAtOnce, resetsPerSecond   = 1000, 100
	controlAtOnce, controlPerSecond = 1000, 100
	emptyAtOnce, emptyPerSecond     = 100, 10

	updatesAtOnce   = 1000
	updatesPerFrame = 10
	freeUpdates     = 10
	maxUpdates      = 100_000 // that can be saved up

	maxContinuations = 64       // of one head
	maxBlock         = 64 << 10 // bytes of one head, as it is encoded
)

type budget struct{ left, most, rate float64 }

type budgets struct {
	at                     time.Time
	resets, control, empty budget
	updates                int
}

func (b *budgets) start(now time.Time) {
	b.at = now
	b.resets = budget{resetsAtOnce, resetsAtOnce, resetsPerSecond}
	b.control = budget{controlAtOnce, controlAtOnce, controlPerSecond}
	b.empty = budget{emptyAtOnce, emptyAtOnce, emptyPerSecond}
	b.updates = updatesAtOnce
}

// refill lets time pass. It is called before what was read is looked at.
func (b *budgets) refill(now time.Time) {
	if d := now.Sub(b.at).Seconds(); d > 0 {
		b.at = now
		for _, each := range []*budget{&b.resets, &b.control, &b.empty} {
			each.left = min(each.most, each.left+d*each.rate)
		}
	}
}

// spend takes one, and fails when there is none.
func (b *budget) spend(what string) error {
	if b.left < 1 {
		return broken(enhanceYourCalm, what)
	}
	b.left--
	return nil
}

// earn gives one back.
func (b *budget) earn() { b.left = min(b.most, b.left+1) }

func (b *budgets) update() error {
	if b.updates < 1 {
		return broken(enhanceYourCalm, "too many WINDOW_UPDATEs")
	}
	b.updates--
	return nil
}

// earn adds updates.
func (b *budgets) earn(n int) { b.updates = min(maxUpdates, b.updates+n) }

// recent remembers streams that ended while the client may not know it yet: what
// still comes for them is passed over and is no fault.
type recent struct {
	ids  [256]uint32
	next int
}

func (q *recent) add(id uint32) {
	q.ids[q.next] = id
	q.next = (q.next + 1) % len(q.ids)
}

func (q *recent) has(id uint32) bool {
	for _, one := range q.ids {
		if one == id {
			return true
		}
	}
	return false
}
