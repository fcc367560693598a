package policy

import "testing"

// BenchmarkDecide is the table of contract 2.13, once for each connection.
func BenchmarkDecide(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, reason := Decide(Strict, Auto, MeshHTTP); reason != None {
			b.Fatal(reason)
		}
	}
}
