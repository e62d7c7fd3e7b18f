package main

import "testing"

// What is acknowledged shall be on two disks where there are three.
func TestTopicsWaitForASecondReplica(t *testing.T) {
	f := func(replication, asked, want int) {
		t.Helper()
		c := &config{replication: replication, minInSync: asked, topics: topics{logs: "otlp_logs"}}
		if got := c.topicSpecs()[0].MinInSyncReplicas; got != want {
			t.Errorf("--replication=%d --min-insync-replicas=%d: %d, want %d", replication, asked, got, want)
		}
	}
	f(-1, 0, 0)
	f(1, 0, 0)
	f(2, 0, 0)
	f(3, 0, 2)
	f(5, 0, 2)
	f(5, 3, 3)
	f(3, 1, 1)
	f(-1, 2, 2)
}
