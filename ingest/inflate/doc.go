// Package inflate decompresses gzip bodies that are in memory as a whole, into memory.
//
// It is for the edge, where inflating is the largest part of what a gzipped request costs: that the whole body is there, and most often how large it will become,
// saves the window, the copies and the checks for each byte that a stream needs. It follows RFC 1951 and RFC 1952, and takes and refuses what compress/gzip
// does, which its tests hold it against.
//
// It promises memory of its own that does not depend on the input, no output beyond what the caller makes room for, and time in proportion to input and output,
// whatever the bytes are. It fails with ErrCorrupt, ErrTruncated, or what the caller's Room says.
package inflate
