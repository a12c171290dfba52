"""Compiled loops over the bytes of JSON lines: they say "this line is plainly so" or nothing, and never judge.

What each proves of a line that it accepts:

- `read_lines`: the line is the shape's fixed bytes with values between them. A text holds no quote, no backslash, no
  control character, and is UTF-8 unless it belongs to the label (labels are understood from a whole line, once). A
  number is written as JSON writes it. So the line's JSON is the example's, but for these values. The time is a moment
  from 2000 to 2099 in UTC with at most six digits below the second; a quantity is the integer `mantissa` with
  `places` digits behind the point, at most 18 digits in all, or `places` is -1: not known here.
- `identify`: the BLAKE2b digest of a prefix and the id, where both fill at most one block of 128 bytes.
- `digest_lines`: CRC-32C, as the package `crc32c` computes it.

What is not accepted is left to `pipeline.json_events`, line by line. Every text must be followed by a byte below 32 and
by `PADDING` bytes that may be read, because eight bytes are looked at at once. Importing this module compiles it (some
seconds, the first time on a machine) or loads what was compiled before: `pipeline.compiled` does so.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disable-error-code="assignment"
# What numba compiles has the types of its signature; of Python's annotations it knows nothing.

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from pipeline.lines import PADDING

LANES = 8  # so many identities are hashed side by side
BLOCK = 128  # bytes of a block of BLAKE2b
MOST_WORDS = 256  # of a label; longer ones are left to the other way
TEXT, NUMBER = 0, 1  # kinds of values
UNREAD, LABEL, ID, TIME, QUANTITY = range(5)  # roles of values
NOT_SO, NEW = -1, -2  # labels: the line is not accepted; the label is not known, and there is no room for it
HAS_CRC = bool(binding.get_host_cpu_features().get("sse4.2"))

_MOST_PROBES = 64  # whoever makes labels collide only slows down the own lines
_MOST_DIGITS = 18
_U = np.uint64
_ONES, _HIGH = _U(0x0101010101010101), _U(0x8080808080808080)
_QUOTES, _BACKSLASHES, _SPACES = _U(0x2222222222222222), _U(0x5C5C5C5C5C5C5C5C), _U(0x2020202020202020)
_NEWLINES = _U(0x0A0A0A0A0A0A0A0A)
_MIX = _U(0x9E3779B97F4A7C15)
_DAYS = np.array([31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31], np.int64)
_DAYS_BEFORE = np.cumsum(np.concatenate([[0], _DAYS[:-1]]))
_POWERS = np.array([10**n for n in range(7)], np.int64)
_DAYS_TO_2000 = 10_957

# RFC 7693: the initial state is SHA-512's; then the order of message words in each round.
_INITIAL = (0x6A09E667F3BCC908, 0xBB67AE8584CAA73B, 0x3C6EF372FE94F82B, 0xA54FF53A5F1D36F1,
            0x510E527FADE682D1, 0x9B05688C2B3E6C1F, 0x1F83D9ABFB41BD6B, 0x5BE0CD19137E2179)  # fmt: skip
_SIGMA = ("0123456789abcdef", "ea489fd61c02b753", "b8c052fdae367194", "7931dcbe265a40f8", "905724afe1bc683d",
          "2c6a0b834d75fe19", "c51fed4a0763928b",
          "db7ec13950f4862a", "6fe9b308c2d714a5", "a2847615fb9e3cd0")  # fmt: skip

_TEXT = types.Array(types.uint8, 1, "C", readonly=True)
_INTS, _INTS_2 = types.int64[::1], types.int64[:, ::1]
_WORDS, _WORDS_2 = types.uint64[::1], types.uint64[:, ::1]


@intrinsic
def _word_at(typing_context: Any, text: Any, place: Any) -> Any:
    """Return the eight bytes that begin at a place, the first one lowest."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        pointer = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(64).as_pointer())
        return builder.load(pointer, align=1)

    return types.uint64(text, types.int64), generate


@intrinsic
def _crc_of(typing_context: Any, crc: Any, word: Any) -> Any:
    """Take eight bytes into a CRC-32C, by the instruction of x86-64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(word, [word, word]), "llvm.x86.sse42.crc32.64.64"
        )
        return builder.call(function, arguments)

    return types.uint64(types.uint64, types.uint64), generate


@intrinsic
def _crc_of_byte(typing_context: Any, crc: Any, octet: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        half, octet = ir.IntType(32), ir.IntType(8)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(half, [half, octet]), "llvm.x86.sse42.crc32.32.8"
        )
        crc = builder.call(function, [builder.trunc(arguments[0], half), arguments[1]])
        return builder.zext(crc, ir.IntType(64))

    return types.uint64(types.uint64, types.uint8), generate


@intrinsic
def _hash_block(typing_context: Any, block: Any, lengths: Any, out: Any) -> Any:
    """Hash `LANES` messages of one block: BLAKE2b without a key, 16 bytes of digest (RFC 7693), a lane for each.

    Args:
        block: Word by word, each for all lanes; what is behind a message is 0.
        lengths: Of the messages, in bytes.
        out: The digests' first words for all lanes, then their second ones.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = ir.VectorType(ir.IntType(64), LANES)
        block, lengths, out = (
            builder.bitcast(context.make_array(kind)(context, builder, value).data, lanes.as_pointer())
            for kind, value in zip(signature.args, arguments, strict=True)
        )

        def same(number: int) -> Any:
            return ir.Constant(lanes, [number % (1 << 64)] * LANES)

        def at(pointer: Any, place: int) -> Any:
            return builder.gep(pointer, [ir.Constant(ir.IntType(64), place)])

        def load(pointer: Any, place: int) -> Any:
            return builder.load(at(pointer, place), align=8)

        def turn(value: Any, bits: int) -> Any:
            return builder.or_(builder.lshr(value, same(bits)), builder.shl(value, same(64 - bits)))

        words = [load(block, n) for n in range(16)]
        first = _INITIAL[0] ^ 0x01010000 ^ 16
        v = [same(n) for n in (first, *_INITIAL[1:], *_INITIAL)]
        v[12] = builder.xor(v[12], load(lengths, 0))
        v[14] = same(~_INITIAL[6])  # the last block
        for number in range(12):
            order = [words[int(digit, 16)] for digit in _SIGMA[number % 10]]
            for i in range(8):
                a, b, c, d = (4 * row + (i + (row if i >= 4 else 0)) % 4 for row in range(4))
                for word, (right, left) in zip(order[2 * i : 2 * i + 2], ((32, 24), (16, 63)), strict=True):
                    v[a] = builder.add(builder.add(v[a], v[b]), word)
                    v[d] = turn(builder.xor(v[d], v[a]), right)
                    v[c] = builder.add(v[c], v[d])
                    v[b] = turn(builder.xor(v[b], v[c]), left)
        for n, start in enumerate((first, _INITIAL[1])):
            builder.store(builder.xor(same(start), builder.xor(v[n], v[n + 8])), at(out, n), align=8)
        return context.get_dummy_value()

    return types.void(block, lengths, out), generate


@njit(forceinline=True)
def _zero_bytes(word):
    """Return a word whose lowest high bit is set where the word's first zero byte is; no bit, where it has none."""
    return (word - _ONES) & ~word & _HIGH


@njit(forceinline=True)
def _bytes_below(bits):
    """Return how many bytes lie below the lowest high bit."""
    lowest = bits & (~bits + _U(1))
    return np.int64((((lowest - _U(1)) & _ONES) * _ONES) >> _U(56)) - 1


@njit(forceinline=True)
def _first_bytes(count):
    """Return a mask of the first bytes of a word, from 1 to 8."""
    return ~_U(0) >> (_U(64) - _U(8) * _U(count))


@njit(forceinline=True)
def _same(text, at, other, where, size):
    """Tell whether two texts have the same bytes."""
    while size >= 8:
        if _word_at(text, at) != _word_at(other, where):
            return False
        at, where, size = at + 8, where + 8, size - 8
    return size == 0 or ((_word_at(text, at) ^ _word_at(other, where)) & _first_bytes(size)) == 0


@njit(forceinline=True)
def _is_utf8(text, at, stop):
    """Tell whether bytes are UTF-8 as RFC 3629 has it: none too long, no surrogates, none above U+10FFFF."""
    while at < stop:
        lead = text[at]
        if lead < 0x80:
            at += 1
            continue
        if lead < 0xC2 or lead > 0xF4:
            return False
        more = 1 if lead < 0xE0 else (2 if lead < 0xF0 else 3)
        if at + more >= stop:
            return False
        least = 0xA0 if lead == 0xE0 else (0x90 if lead == 0xF0 else 0x80)
        most = 0x9F if lead == 0xED else (0x8F if lead == 0xF4 else 0xBF)
        if text[at + 1] < least or text[at + 1] > most:
            return False
        for n in range(2, more + 1):
            if text[at + n] < 0x80 or text[at + n] > 0xBF:
                return False
        at += more + 1
    return True


@njit(forceinline=True)
def _text_end(text, at, check):
    """Return where the quote behind a plain text is, or -1: there is something else that ends it, or is no UTF-8."""
    place, wide, stops = at, _U(0), _U(0)
    while stops == _U(0):
        word = _word_at(text, place)
        stops = _zero_bytes(word ^ _QUOTES) | _zero_bytes(word ^ _BACKSLASHES) | ((word - _SPACES) & ~word & _HIGH)
        if stops == _U(0):
            wide |= word & _HIGH
            place += 8
        else:
            wide |= word & ((stops & (~stops + _U(1))) - _U(1)) & _HIGH
            place += _bytes_below(stops)
    if text[place] != 0x22 or (check and wide != _U(0) and not _is_utf8(text, at, place)):
        return -1
    return place


@njit(forceinline=True)
def _number_end(text, at):
    """Return where a number ends that is written as JSON writes it, with at most 18 digits before the point, or -1."""
    if text[at] == 0x2D:
        at += 1
    first = at
    while 0x30 <= text[at] <= 0x39:
        at += 1
    digits = at - first
    if digits == 0 or digits > _MOST_DIGITS or (text[first] == 0x30 and digits > 1):
        return -1
    if text[at] == 0x2E:
        at += 1
        first = at
        while 0x30 <= text[at] <= 0x39:
            at += 1
        if at == first:
            return -1
    return at


@njit(forceinline=True)
def _quantity(text, at, stop):
    """Return a decimal text without its point, and how many digits are behind it; -1 of them: it is not plainly one."""
    negative = at < stop and text[at] == 0x2D
    if negative:
        at += 1
    value, digits, point = 0, 0, -1
    for place in range(at, stop):
        octet = text[place]
        if 0x30 <= octet <= 0x39:
            value = value * 10 + np.int64(octet - 0x30)
            digits += 1
            if digits > _MOST_DIGITS:
                return 0, -1
        elif octet == 0x2E and point < 0 and digits > 0:
            point = digits
        else:
            return 0, -1
    if digits == 0 or point == digits:
        return 0, -1
    return (-value if negative else value), (digits - point if point >= 0 else 0)


@njit(forceinline=True)
def _pair(text, at):
    """Return the number that two digits stand for; more than 99 if they are none."""
    tens, units = text[at] - 0x30, text[at + 1] - 0x30
    return np.int64(tens * 10 + units) if 0 <= tens <= 9 and 0 <= units <= 9 else np.int64(100)


@njit(forceinline=True)
def _time(text, at, stop):
    """Return microseconds since 1970 of 20YY-MM-DDTHH:MM:SS[.ffffff]Z, or -1."""
    size = stop - at
    if size < 20 or size > 27 or size == 21 or text[at] != 0x32 or text[at + 1] != 0x30:
        return -1
    if text[at + 4] != 0x2D or text[at + 7] != 0x2D or text[at + 10] != 0x54 or text[stop - 1] != 0x5A:
        return -1
    if text[at + 13] != 0x3A or text[at + 16] != 0x3A:
        return -1
    year, month, day = _pair(text, at + 2), _pair(text, at + 5), _pair(text, at + 8)
    hour, minute, second = _pair(text, at + 11), _pair(text, at + 14), _pair(text, at + 17)
    if year > 99 or month < 1 or month > 12 or hour > 23 or minute > 59 or second > 59 or day < 1:
        return -1
    leap = year % 4 == 0  # 2000 was one, too
    if day > _DAYS[month - 1] + (1 if leap and month == 2 else 0):
        return -1
    micros = 0
    if size > 20:
        if text[at + 19] != 0x2E:
            return -1
        for place in range(at + 20, stop - 1):
            if text[place] < 0x30 or text[place] > 0x39:
                return -1
            micros = micros * 10 + np.int64(text[place] - 0x30)
        micros *= _POWERS[27 - size]
    days = _DAYS_TO_2000 + year * 365 + (year + 3) // 4 + _DAYS_BEFORE[month - 1] + day - 1
    if leap and month > 2:
        days += 1
    return (((days * 24 + hour) * 60 + minute) * 60 + second) * 1_000_000 + micros


@njit(forceinline=True)
def _label_number(key, size, mark, table, marks, places, pool, counts, room):
    """Return the number of a label, a new one if there is room; whoever has the same hash is compared word by word."""
    mask = len(table) - 1
    slot = np.int64(mark >> _U(20)) & mask
    for _ in range(_MOST_PROBES):
        number = table[slot]
        if number < 0:
            break
        if marks[number] == mark and places[number + 1] - places[number] == size:
            first, same = places[number], True
            for n in range(size):
                if pool[first + n] != key[n]:
                    same = False
                    break
            if same:
                return number
        slot = (slot + 1) & mask
    else:
        return NEW
    number, used = counts[0], counts[1]
    if number >= room or used + size > len(pool):
        return NEW
    for n in range(size):
        pool[used + n] = key[n]
    table[slot], marks[number], places[number], places[number + 1] = number, mark, used, used + size
    counts[0], counts[1] = number + 1, used + size
    return number


@njit(types.int64(_TEXT, _INTS), cache=True, nogil=True)
def find_lines(text, ends):
    """Fill in where lines end, as far as there is room, and return how many lines there are."""
    count, at, size = 0, 0, len(text) - PADDING
    while at < size:
        found = _zero_bytes(_word_at(text, at) ^ _NEWLINES)
        if found == 0:
            at += 8
            continue
        at += _bytes_below(found)
        if at < size:
            if count < len(ends):
                ends[count] = at
            count += 1
        at += 1
    return count


@njit(
    types.void(_TEXT, _INTS, _INTS, _INTS, _TEXT, *[_INTS] * 4, *[_INTS, _WORDS, _INTS, _WORDS, _INTS], types.int64,
               _INTS, _INTS, _INTS_2, _INTS_2, _INTS_2, _INTS_2, _INTS_2),
    cache=True, nogil=True,
)  # fmt: skip
def read_lines(
    text, starts, ends, rows, fixed, edges, kinds, roles, slots, table, marks, places, pool, counts, room,
    labels, times, ids, mantissas, decimals, from_, to,
):  # fmt: skip
    """Read the lines that have a shape.

    Args:
        text, starts, ends, rows: The lines' bytes, where each is, and which to read.
        fixed, edges: The parts of a line between its values, one behind the other, and where each begins.
        kinds, roles, slots: What each value is; of a quantity, which one.
        table, marks, places, pool, counts, room: The labels known, and how many there may be (`CompiledLookalikes`).
        labels: Filled with each line's label, or `NEW`, or `NOT_SO`.
        times, ids, mantissas, decimals, from_, to: Filled for each line; the last four for each quantity of it.
    """
    key = np.zeros(MOST_WORDS, np.uint64)
    values = len(kinds)
    for i in range(len(rows)):
        labels[i] = NOT_SO
        at, end = starts[rows[i]], ends[rows[i]]
        size, mark, fine = 0, _MIX, True
        for k in range(values + 1):
            length = edges[k + 1] - edges[k]
            if at + length > end or not _same(text, at, fixed, edges[k], length):
                fine = False
                break
            at += length
            if k == values:
                break
            role = roles[k]
            stop = _text_end(text, at, role != LABEL) if kinds[k] == TEXT else _number_end(text, at)
            if stop < 0 or stop > end:
                fine = False
                break
            if role == LABEL:
                words = (stop - at + 7) >> 3
                if size + words + 1 > MOST_WORDS:
                    fine = False
                    break
                key[size] = _U(stop - at)
                mark = (mark ^ key[size]) * _MIX
                size += 1
                for n in range(words):
                    word = _word_at(text, at + 8 * n)
                    if n == words - 1:
                        word &= _first_bytes(stop - at - 8 * n)
                    key[size] = word
                    mark = (mark ^ word) * _MIX
                    mark ^= mark >> _U(29)
                    size += 1
            elif role == ID:
                if stop - at < 1 or stop - at > 1024:
                    fine = False
                    break
                ids[i, 0], ids[i, 1] = at, stop
            elif role == TIME:
                times[i] = _time(text, at, stop)
                if times[i] < 0:
                    fine = False
                    break
            elif role == QUANTITY:
                slot = slots[k]
                mantissas[slot, i], decimals[slot, i] = _quantity(text, at, stop)
                from_[slot, i], to[slot, i] = at, stop
            at = stop
        if fine and at == end:
            mark ^= mark >> _U(32)
            labels[i] = _label_number(key, size, mark * _MIX, table, marks, places, pool, counts, room)


@njit(types.void(_TEXT, _INTS_2, _INTS, _TEXT, _INTS, _WORDS_2), cache=True, nogil=True)
def identify(text, ids, labels, prefixes, edges, out):
    """Fill in each line's identity; a caller leaves out those whose prefix and id do not fit in one block.

    Args:
        ids: From where to where the ids are.
        labels, prefixes, edges: What stands before each id: the prefix of its label, from `edges[label]` on.
    """
    message = np.zeros(BLOCK, np.uint8)
    words = message.view(np.uint64)
    block, lengths, found = np.zeros(16 * LANES, np.uint64), np.zeros(LANES, np.uint64), np.zeros(2 * LANES, np.uint64)
    for first in range(0, len(labels), LANES):
        many = min(LANES, len(labels) - first)
        for lane in range(many):
            i = first + lane
            at, stop = edges[labels[i]], edges[labels[i] + 1]
            size = stop - at
            for n in range(16):
                words[n] = _word_at(prefixes, at + 8 * n) if 8 * n < size else _U(0)
            for n in range(ids[i, 1] - ids[i, 0]):
                message[size + n] = text[ids[i, 0] + n]
            size += ids[i, 1] - ids[i, 0]
            for n in range(size, min(BLOCK, (stop - at + 7) // 8 * 8)):
                message[n] = 0
            lengths[lane] = _U(size)
            for n in range(16):
                block[n * LANES + lane] = words[n]
        _hash_block(block, lengths, found)
        for lane in range(many):
            out[first + lane, 0], out[first + lane, 1] = found[lane], found[LANES + lane]


if HAS_CRC:

    @njit(types.void(_TEXT, _INTS, _INTS, _WORDS), cache=True, nogil=True)
    def digest_lines(text, starts, ends, out):
        """Fill in each line's CRC-32C."""
        for i in range(len(starts)):
            at, end, crc = starts[i], ends[i], _U(0xFFFFFFFF)
            while at + 8 <= end:
                crc = _crc_of(crc, _word_at(text, at))
                at += 8
            while at < end:
                crc = _crc_of_byte(crc, text[at])
                at += 1
            out[i] = crc ^ _U(0xFFFFFFFF)
