package console

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// confirmedBy says how many of the live edges refuse a deleted account's key, after how long, and which may still accept it until when. parts are
// numbers: confirmed, edges (-1: they could not be asked), milliseconds, and the time of the revocation by the database's clock in microseconds.
func (c *Console) confirmedBy(ctx context.Context, parts []string) string {
	var n [4]int64
	for i := range n {
		var err error
		if n[i], err = strconv.ParseInt(parts[i], 10, 64); err != nil {
			return ""
		}
	}
	confirmed, edges := n[0], n[1]
	switch {
	case edges < 0:
		return "; how many edges refuse it already is unknown"
	case edges == 0:
		return ""
	case confirmed >= edges:
		return fmt.Sprintf("; refused by %d of %d edges after %.1f s", confirmed, edges, float64(n[2])/1000)
	}
	// The cookie holds no names, so they are asked for again; meanwhile they may have learnt of it.
	now, err := c.store.ConfirmRevocation(ctx, time.UnixMicro(n[3]), time.Millisecond)
	if err != nil {
		return fmt.Sprintf("; refused by %d of %d edges so far", confirmed, edges)
	}
	text := fmt.Sprintf("; refused by %d of %d edges so far", now.Confirmed, now.Edges)
	var pending []string
	for i, p := range now.Pending {
		if i == 3 {
			pending = append(pending, fmt.Sprintf("and %d more", len(now.Pending)-i))
			break
		}
		pending = append(pending, p.ID+" until "+p.Until.UTC().Format("15:04:05")+" UTC")
	}
	if len(pending) > 0 {
		text += ". May still accept it: " + strings.Join(pending, ", ")
	}
	return text
}
