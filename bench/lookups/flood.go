package main

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"flowstate.inc/sluice/auth"
)

// flood sends well-formed keys that do not exist, from a thousand addresses, beside good keys from elsewhere.
func (w *world) flood(ctx context.Context, o options) (floodResult, error) {
	const budget = 500 // ChainConfig.MissesPerSecond's default
	r := floodResult{What: "flood", Budget: budget, Answers: map[string]int64{}}
	c, err := w.start(ctx, o)
	if err != nil {
		return r, err
	}
	defer c.stop()
	var answers [3]atomic.Int64 // refused, unavailable, accepted
	var good, failed, cold atomic.Int64
	var goodTook timings
	// The flood comes upon an edge at work, most of whose keys are not in L1.
	const calm = 2 * time.Second
	ctx, cancel := context.WithTimeout(ctx, calm+o.flood)
	defer cancel()
	var wg sync.WaitGroup
	// Bursts of 10 ms: a rate of thousands a second needs no timer each.
	pace := func(perSecond int, do func(n int)) {
		const burst = 10 * time.Millisecond
		tick := time.NewTicker(burst)
		defer tick.Stop()
		began, sent := time.Now(), 0
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				due := int(time.Since(began).Seconds() * float64(perSecond))
				for ; sent < due; sent++ {
					n := sent
					wg.Go(func() { do(n) })
				}
			}
		}
	}
	var pacers sync.WaitGroup
	var before int64
	var began time.Time
	pacers.Go(func() {
		select {
		case <-ctx.Done():
			return
		case <-time.After(calm):
		}
		before, began = w.asked.Load(), time.Now()
		pace(o.unknown, func(n int) {
			_, key := auth.MintKey(auth.KindServiceAccount)
			from := netip.AddrFrom4([4]byte{198, 51, byte(n / 250 % 4), byte(n % 250)})
			_, err := c.Authenticate(context.WithoutCancel(ctx), auth.Credentials{Key: key}, from)
			switch {
			case errors.Is(err, auth.ErrUnknownKey):
				answers[0].Add(1)
			case errors.Is(err, auth.ErrUnavailable):
				answers[1].Add(1)
			default:
				answers[2].Add(1)
			}
		})
	})
	pacers.Go(func() {
		pace(o.good, func(n int) {
			// Nine of ten requests are of a tenth of the keys, which is known soon; the others of keys that this edge may never have seen.
			key := w.keys[n%max(1, min(len(w.keys), 10_000)/10)]
			if n%10 == 0 {
				key = w.keys[len(w.keys)-1-n%len(w.keys)]
				cold.Add(1)
			}
			from := netip.AddrFrom4([4]byte{192, 0, 2, byte(n % 20)})
			began := time.Now()
			_, err := c.Authenticate(context.WithoutCancel(ctx), auth.Credentials{Key: key}, from)
			goodTook.add(time.Since(began))
			good.Add(1)
			if err != nil {
				failed.Add(1)
			}
		})
	})
	pacers.Wait()
	wg.Wait()
	r.Unknown = answers[0].Load() + answers[1].Load() + answers[2].Load()
	r.UnknownPerSec = float64(r.Unknown) / time.Since(began).Seconds()
	r.Answers["refused_401"], r.Answers["unavailable_503"], r.Answers["accepted"] = answers[0].Load(), answers[1].Load(), answers[2].Load()
	r.Good, r.GoodFailed, r.GoodCold, r.Asked = good.Load(), failed.Load(), cold.Load(), w.asked.Load()-before
	// What was asked and found is a good key's look-up, which has no budget but that of the slots.
	r.Misses = int64(c.lookups()["miss truth"])
	r.MissesPerSec = float64(r.Misses) / time.Since(began).Seconds()
	_, r.GoodP99us = goodTook.percentiles()
	return r, nil
}
