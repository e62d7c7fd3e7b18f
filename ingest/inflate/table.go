package inflate

import "math/bits"

const (
	maxMatch     = 258
	maxCode      = 15  // bits of the longest code
	maxLiterals  = 288 // symbols for literals, the end of a block and lengths, two of them unused
	maxDistances = 32  // two of them unused

	// How many bits of input index a table directly. Longer codes have tables of their own behind it, all of one beginning in one.
	literalBits  = 10
	distanceBits = 8

	// Room for the most that any set of codes takes, with those tables: by zlib's enough.c for 288 (32) symbols of at most 15 bits.
	literalSize  = 1334
	distanceSize = 402
)

// An entry says what the bits that lead to it mean:
//
//	bits 0–5    how many of them are used, extra bits included; of a link how many index the table behind it
//	bits 6–9    how many of these are the code's own
//	bits 10–13  what it is; none of them: a length or a distance
//	bits 16–31  the literal, the least length or distance, or where the table behind a link begins
type entry uint32

const (
	usedMask = 1<<6 - 1
	codeAt   = 6
	codeMask = 1<<4 - 1

	isLiteral entry = 1 << 10
	isSpecial entry = 1 << 11 // a link, the end of the block, or no code at all
	isLink    entry = 1 << 12
	isEnd     entry = 1 << 13

	valueAt = 16
)

// number is the length or the distance that e stands for, with the extra bits behind its code.
func (e entry) number(bits uint64, n uint) (int, uint64, uint) {
	used, code := uint(e&usedMask), uint(e>>codeAt&codeMask)
	return int(e>>valueAt) + int(bits>>code&(1<<(used-code)-1)), bits >> used, n - used
}

// with is e, which has its extra bits alone, for a code of so many bits.
func (e entry) with(code uint) entry { return e + entry(code|code<<codeAt) }

// What the symbols mean (RFC 1951, 3.2.5), but for their codes.
var (
	literalEntries  = makeLiterals()
	distanceEntries = makeDistances()
)

func makeLiterals() (list [maxLiterals]entry) {
	for i := range 256 {
		list[i] = isLiteral | entry(i)<<valueAt
	}
	list[256] = isSpecial | isEnd
	length, extra := 3, 0
	for i := 257; i < 285; i++ {
		list[i] = entry(length)<<valueAt | entry(extra)
		length += 1 << extra
		if i >= 264 && i&3 == 0 {
			extra++
		}
	}
	list[285] = maxMatch << valueAt
	list[286], list[287] = isSpecial, isSpecial
	return list
}

func makeDistances() (list [maxDistances]entry) {
	distance, extra := 1, 0
	for i := range 30 {
		list[i] = entry(distance)<<valueAt | entry(extra)
		distance += 1 << extra
		if i >= 3 && i&1 != 0 {
			extra++
		}
	}
	list[30], list[31] = isSpecial, isSpecial
	return list
}

// build fills a table, indexed by size bits, for codes of these lengths, whose symbols mean what meanings says. It reports whether the lengths make a code:
// one that is complete, or has a single symbol of one bit, as zlib and Go's own package have it, or none, with which nothing can be read.
func build(table []entry, size uint, lengths []uint8, meanings []entry) bool {
	var count [maxCode + 1]int
	for _, n := range lengths {
		count[n]++
	}
	longest := uint(maxCode)
	for longest > 0 && count[longest] == 0 {
		longest--
	}
	if longest == 0 {
		fill(table[:1<<size], isSpecial)
		return true
	}
	// Symbols by the length of their codes, then by their own order: canonical Huffman codes.
	var first [maxCode + 2]int // among these, of each length
	left := 1
	for n := uint(1); n <= maxCode; n++ {
		if left = left<<1 - count[n]; left < 0 {
			return false
		}
		first[n+1] = first[n] + count[n]
	}
	var order [maxLiterals]uint16
	next := first
	for symbol, n := range lengths {
		if n != 0 {
			order[next[n]] = uint16(symbol)
			next[n]++
		}
	}
	if left != 0 {
		if longest != 1 {
			return false
		}
		fill(table[:1<<size], isSpecial)
		for i := 0; i < 1<<size; i += 2 {
			table[i] = meanings[order[0]].with(1)
		}
		return true
	}
	fillComplete(table, size, &count, order[:first[maxCode+1]], meanings)
	return true
}

// fillComplete is the part of build for a complete code. Codes are counted up from their highest bit, but come lowest bit first: so code is kept reversed.
func fillComplete(table []entry, size uint, count *[maxCode + 1]int, order []uint16, meanings []entry) {
	code, filled := uint(0), uint(1) // table[:filled] repeats for every longer index
	n := uint(0)
	at := 0
	for n < size && at < len(order) {
		n++
		copy(table[filled:2*filled], table[:filled])
		filled *= 2
		for range count[n] {
			table[code] = meanings[order[at]].with(n)
			at++
			code = after(code, n)
		}
	}
	if at == len(order) {
		for ; n < size; n++ {
			copy(table[filled:2*filled], table[:filled])
			filled *= 2
		}
		return
	}
	// The longer ones, in tables behind: from here on code's lowest bits are where its table is linked, and it never comes back to them.
	free := uint(1) << size
	link, base, room := ^uint(0), uint(0), uint(0)
	for n = size + 1; at < len(order); n++ {
		for left := count[n]; left > 0; left-- {
			if low := code & (1<<size - 1); low != link {
				link = low
				// As large as it takes for all codes that begin so: they are a run, the shortest first.
				room = n - size
				for taken := left; taken < 1<<room && size+room < maxCode; {
					room++
					taken = taken<<1 + count[size+room]
				}
				base = free
				free += 1 << room
				table[link] = isSpecial | isLink | entry(base)<<valueAt | entry(room)
			}
			e := meanings[order[at]].with(n - size)
			for i := code >> size; i < 1<<room; i += 1 << (n - size) {
				table[base+i] = e
			}
			at++
			code = after(code, n)
		}
	}
}

// after is the reversed code of n bits that follows code; after the last one it is 0.
func after(code, n uint) uint {
	zeros := ^code & (1<<n - 1)
	if zeros == 0 {
		return 0
	}
	bit := uint(1) << (bits.Len(zeros) - 1)
	return code&(bit-1) | bit
}

func fill(list []entry, e entry) {
	for i := range list {
		list[i] = e
	}
}

// fixedLengths are the codes of a block that brings none (RFC 1951, 3.2.6).
var fixedLengths = func() (list [maxLiterals + maxDistances]uint8) {
	for i := range list {
		switch {
		case i < 144:
			list[i] = 8
		case i < 256:
			list[i] = 9
		case i < 280:
			list[i] = 7
		case i < maxLiterals:
			list[i] = 8
		default:
			list[i] = 5
		}
	}
	return list
}()

// fixedTables are built once: a block of this kind may be ten bits long, and must not cost more than it says.
var fixedTables = func() *Decoder {
	d := new(Decoder)
	if !d.tables(fixedLengths[:maxLiterals], fixedLengths[maxLiterals:]) {
		panic("BUG: the fixed codes are none")
	}
	return d
}()

func (d *Decoder) fixed() {
	if !d.isFixed {
		d.literals, d.distances, d.isFixed = fixedTables.literals, fixedTables.distances, true
	}
}

func (d *Decoder) tables(literals, distances []uint8) bool {
	return build(d.literals[:], literalBits, literals, literalEntries[:]) && build(d.distances[:], distanceBits, distances, distanceEntries[:])
}

// The lengths of the codes are Huffman codes themselves (RFC 1951, 3.2.7), of symbols that come in this order.
var orderOfLengths = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

const lengthBits = 7 // of the longest of these codes: their table needs no others behind it

// lengthEntries say of each symbol what it is, and nothing else.
var lengthEntries = func() (list [19]entry) {
	for i := range list {
		list[i] = entry(i) << valueAt
	}
	return list
}()

// dynamic reads the codes that a block brings along.
func (d *Decoder) dynamic() error {
	d.isFixed = false
	head, ok := d.take(14)
	if !ok {
		return ErrTruncated
	}
	literals, distances, given := int(head&31)+257, int(head>>5&31)+1, int(head>>10)+4
	if literals > maxLiterals-2 || distances > maxDistances-2 {
		return ErrCorrupt
	}
	var first [19]uint8
	for _, symbol := range orderOfLengths[:given] {
		n, ok := d.take(3)
		if !ok {
			return ErrTruncated
		}
		first[symbol] = uint8(n)
	}
	// The table of literals is not needed yet.
	if !build(d.literals[:], lengthBits, first[:], lengthEntries[:]) {
		return ErrCorrupt
	}
	lengths := d.lengths[:literals+distances]
	for i := 0; i < len(lengths); {
		if d.n < lengthBits+7 {
			d.refill()
		}
		e := d.literals[d.bits&(1<<lengthBits-1)]
		used := uint(e & usedMask)
		switch {
		case e&isSpecial != 0:
			return d.broken(d.n)
		case used > d.n:
			return ErrTruncated
		}
		d.bits >>= used
		d.n -= used
		symbol := uint8(e >> valueAt)
		if symbol < 16 {
			lengths[i] = symbol
			i++
			continue
		}
		extra, times, what := uint(2), 3, uint8(0)
		switch symbol {
		case 16:
			if i == 0 {
				return ErrCorrupt
			}
			what = lengths[i-1]
		case 17:
			extra = 3
		case 18:
			extra, times = 7, 11
		}
		more, ok := d.take(extra)
		if !ok {
			return ErrTruncated
		}
		if times += int(more); times > len(lengths)-i {
			return ErrCorrupt
		}
		for range times {
			lengths[i] = what
			i++
		}
	}
	if !d.tables(lengths[:literals], lengths[literals:]) {
		return ErrCorrupt
	}
	return nil
}
