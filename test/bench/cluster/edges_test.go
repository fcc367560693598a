package cluster

import "testing"

// A proxy with so many peers spends no more on edges than was promised.
func TestEdgesHeap(t *testing.T) {
	got := edgesHeap(edgePeers) / 1e6
	t.Logf("%.2f MB", got)
	if got > edgesMBLimit || got < 0.1 {
		t.Errorf("%d peers take %.2f MB, the limit is %d", edgePeers, got, edgesMBLimit)
	}
}
