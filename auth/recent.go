package auth

import (
	"sync"
	"time"
)

const recentShards = 64

// recent holds the least version that may be used of each key that changed within the window, whatever happens to the
// caches. Nothing but time removes an entry. It is looked into on every request, so it is sharded; it is bounded by what
// the database keeps of changes.
type recent struct {
	shards [recentShards]struct {
		mu sync.RWMutex
		m  map[PublicID]mark // guarded by mu
	}
}

type mark struct {
	version int64
	at      time.Time // by the database's clock
}

func (r *recent) init() {
	for i := range r.shards {
		r.shards[i].m = map[PublicID]mark{}
	}
}

func shardOf(id PublicID) int {
	return int(id[prefixLen-1]^id[prefixLen-2]<<3^id[prefixLen-3]<<5) % recentShards
}

// version is the least version of the key that may be used; 0 where none is known.
func (r *recent) version(id PublicID) int64 {
	s := &r.shards[shardOf(id)]
	s.mu.RLock()
	m := s.m[id]
	s.mu.RUnlock()
	return m.version
}

// raise notes a change and reports whether it was news.
func (r *recent) raise(id PublicID, version int64, at time.Time) bool {
	s := &r.shards[shardOf(id)]
	s.mu.Lock()
	defer s.mu.Unlock()
	old, ok := s.m[id]
	if ok && old.version >= version {
		return false
	}
	if at.Before(old.at) {
		at = old.at
	}
	s.m[id] = mark{version: version, at: at}
	return true
}

// prune forgets changes from before the time. The caller makes sure that no record that old can be used.
func (r *recent) prune(before time.Time) {
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.Lock()
		for id, m := range s.m {
			if m.at.Before(before) {
				delete(s.m, id)
			}
		}
		s.mu.Unlock()
	}
}

// all calls f with every change known.
func (r *recent) all(f func(PublicID)) {
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.RLock()
		for id := range s.m {
			f(id)
		}
		s.mu.RUnlock()
	}
}

func (r *recent) len() int {
	n := 0
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.RLock()
		n += len(s.m)
		s.mu.RUnlock()
	}
	return n
}
