// Package spool is a crash-safe log on local disk for messages that could not go to Kafka in time.
//
// It is the second half of the promise behind a 2xx: [Log.Append] returns nil only when every entry of the call is in a file and
// fdatasync has said so. It knows topics and keys but nothing of Kafka; the breaker, the drain and its pace live in package ingest.
//
// # What it promises
//
//   - An appended entry is returned by [Log.Next] until it is committed or parked: at least once, never zero times.
//   - The entries of one call are on disk all or none when the process is killed at any instant.
//   - A damaged record is never returned. It costs itself and no other record: its bytes are copied to the quarantine, it is counted and
//     logged with its place, and reading goes on behind it.
//   - Nothing is evicted. A full spool refuses ([ErrFull]) before the disk does; records over MaxAge and records that the broker will
//     never take move to the quarantine, which is itself a spool directory and can be drained like one.
//   - Memory is bounded by MaxPendingBytes twice (the batch being written and the one being filled), one bit per record on disk, and what
//     Next was asked for. One goroutine, which Close waits for.
//
// # Files
//
// The directory is 0700 and its files 0600, because they hold prompts. One process owns it, by flock on the file lock.
//
//	FIRST-SALT.seg   a segment: FIRST is the sequence number of its first record, SALT seeds its checksums, both in hexadecimal
//	FIRST-SALT.ack   which of its records are finished with: a bitmap
//	quarantine/      parked and expired records in segments of the same format, and damaged-SEGMENT-OFFSET.bin, raw bytes
//	lock
//
// All integers are little-endian; CRCs are CRC-32C. A segment starts with 36 bytes:
//
//	magic "SLUICESP" | version u16 = 1 | zero u16 | salt u32 | first sequence u64 | created, unix ms i64 | crc u32 of the 32 before it
//
// All of that is also in the file's name, so a damaged head costs nothing. Frames follow without padding, one for each record:
//
//	magic F5 53 4C 1A | length u32 | sequence u64 | enqueued, unix ms i64 | rest u32 | payload crc u32 | header crc u32 | payload
//
// The rest is the number of records of the same call behind this one; 0 marks the call complete. Sequence numbers are contiguous
// inside a segment. The header crc covers the 32 bytes before it and starts from the segment's random salt: what a sender
// puts into a message can therefore not pass for a frame when a scan looks for the next one behind damage. A candidate
// for a frame costs 36 bytes to refuse, so scans are linear. Behind a frame whose payload does not check the next one is looked for by its magic.
//
// The payload is topic, key, number of headers, each header's key and value, value, note. Each string is a uvarint and its bytes; the uvarint
// is the length plus one, and zero means null. The partition is not stored: the topic may have grown when the record is sent. The note is
// empty but in the quarantine, where it says why the record is there.
//
// An ack file is magic "SLUICEAK", version u16, zero u16, salt u32, number of bits u32, the bitmap, crc u32 of all before. It is replaced
// by write, fsync and rename. One that is missing or damaged means that nothing was finished: records come again.
//
// # Writing
//
// Callers encode into one buffer; a goroutine writes that buffer with one WriteAt and one fdatasync while the next one fills, and so one
// sync pays for as many calls as arrive during the sync before it. A segment is started by the batch that does not fit the last one, and
// its directory entry is fsynced before that batch is acknowledged. A segment of an earlier process is never appended to.
//
// After any error of write or sync the whole batch fails and the file is given up: the kernel may have dropped the dirty pages and would
// report the next sync as a success. The file is cut back to what was acknowledged and the next batch starts a new segment.
//
// # Recovery
//
// Open walks the headers of all segments, and checks the payloads of the newest one too; other payloads are checked as they are read.
// Bytes at the end that a stopped write can leave (an incomplete frame, zeros, or an incomplete call before them) are a torn tail. It is cut from the newest
// segment and skipped in others. Anything else that does not check is damage: it stays where it is, is copied to the quarantine and
// counted. The number of records lost is known from the sequence numbers around it; where nothing follows, one is counted.
//
// # Assumptions
//
//   - fdatasync returns after the data, and the metadata needed to read it, are on storage that survives a power cut. A disk that lies
//     breaks this, and so does a file system mounted with barriers off.
//   - A sector overwritten with the same leading bytes keeps them when power fails: a batch may share its first sector with the one before.
//   - Unacknowledged pages may reach the disk in any order. A killed process leaves a prefix. After a power cut the one batch that was in flight can have
//     a hole; what checks of it is kept and the hole is counted as damage. Its senders had no answer and send again, under the same ids.
//   - fsync of a directory makes its entries durable. A lost rename of an ack file, or a lost unlink of a segment, means records again.
//   - The checksum finds accidents and what a sender could forge, not an attacker who writes to the directory.
//
// # Order, and one sick topic
//
// Next goes through the log in order of sequence numbers. Finishing is per record, in any order: a drain that cannot deliver to some topic
// or partition leaves those records alone (or has Next pass over them), commits the rest, and sees them again after [Log.Rewind]. A segment is deleted when its last
// record is finished; until then its bytes count, so one sick topic holds the segments that its records lie in.
package spool
