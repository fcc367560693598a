package tlsconn

import (
	"errors"
	"fmt"
	"io"
	"sync"
)

const (
	smallBuffer = 2 << 10  // held while a direction is quiet
	largeBuffer = 64 << 10 // taken from the pool while it is busy
)

// Copier owns the large buffers that copies share. The zero Copier is ready.
type Copier struct{ pool sync.Pool }

// Copy moves bytes from src to dst until src ends (nil) or either fails. After
// each write it calls moved with the number of bytes. A direction that is quiet
// holds a small buffer; one that fills it gets a large one until it is quiet
// again.
func (c *Copier) Copy(dst io.Writer, src io.Reader, moved func(n int)) error {
	small := make([]byte, smallBuffer)
	var large *[largeBuffer]byte
	defer func() {
		if large != nil {
			c.pool.Put(large)
		}
	}()
	for {
		buf := small
		if large != nil {
			buf = large[:]
		}
		n, err := src.Read(buf)
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				return fmt.Errorf("write: %w", err)
			}
			moved(n)
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("read: %w", err)
		case large == nil && n == smallBuffer:
			large = c.large()
		case large != nil && n < smallBuffer:
			c.pool.Put(large)
			large = nil
		}
	}
}

func (c *Copier) large() *[largeBuffer]byte {
	if b, ok := c.pool.Get().(*[largeBuffer]byte); ok {
		return b
	}
	return new([largeBuffer]byte)
}
