"""The machine code of `crystal.data.bpe`, made by numba at the first call: UTF-8 in, ids out. It imports numba, so import it lazily.

A text is cut wherever no merge can reach across; a piece seen before is looked up, a new one is merged. The surprise: nothing here knows
words or lines, and what looks like it could be a class is arrays in tuples, because handing arrays to a function is what costs here: the
loop that sees every byte calls nothing. Arguments have no types, numba finds them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import njit

NO_MERGE = 1 << 62  # above every rank
LOW = (1 << 32) - 1
CUT, JOINED, LOOK = 0, 1, 2  # between two bytes: no merge reaches across; may; their characters must be looked at
SHORT_SYMBOLS = 32  # up to so many, looking at all pairs again and again beats a heap
SHORT_BYTES = 7  # fit into a word behind a 1
MAX_KEPT_BYTES = 128  # longer pieces hardly come again


class Rules(NamedTuple):
    """What decides the ids."""

    between: np.ndarray  # uint8 (256, 256): CUT, JOINED or LOOK for a byte and the next
    characters: np.ndarray  # int32 (0x110000,): each character's id, -1 for those that are spelled in bytes
    byte_ids: np.ndarray  # int32 (256,)
    neighbours: np.ndarray  # int64 (2**k, 2), a hash table: pairs of characters that a merge may join
    merges: np.ndarray  # int64 (2**k, 2), a hash table: pair of ids -> rank << 32 | id


class Memory(NamedTuple):
    """Pieces seen before. A long one has where its bytes begin, and how many they are, before its ids."""

    slots: np.ndarray  # uint64 (2**k, 2), a hash table: piece -> first id << 32 | number of ids
    ids: np.ndarray  # int32
    text: np.ndarray  # uint8, of long pieces
    used: np.ndarray  # int64 (3,): slots, ids, bytes


def compiled(function: Callable[..., Any]) -> Any:
    """By numba; kept on disk for other processes where a folder for it can be written, beside this file or the user's."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # numba found no such folder
        return njit(nogil=True)(function)


@compiled
def home(key, n_slots):
    """Where a key belongs in a hash table of a power of two of slots, 2**24 at most; if that is taken, behind it (Fibonacci hashing)."""
    return ((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)) & np.uint64(n_slots - 1)


@compiled
def pair_key(left, right):
    """Of two ids; never 0, which marks an empty slot."""
    return ((np.int64(left) + 1) << 32) | np.int64(right)


@compiled
def get(table, key):
    """The value of `key` in a hash table of rows (key, value), or NO_MERGE."""
    place = np.int64(home(key, len(table)))
    while table[place, 0] != 0:
        if table[place, 0] == key:
            return table[place, 1]
        place = (place + 1) & (len(table) - 1)
    return NO_MERGE


@compiled
def fill(table, left, right, values):
    """Put pairs of ids into a hash table that is all 0 and has more rows than these."""
    for k in range(len(values)):
        key = pair_key(left[k], right[k])
        place = np.int64(home(key, len(table)))
        while table[place, 0] != 0:
            place = (place + 1) & (len(table) - 1)
        table[place, 0], table[place, 1] = key, values[k]


@compiled
def character_at(text, i):
    """The code point that begins at byte `i` of valid UTF-8, and where the next begins."""
    lead = np.int64(text[i])
    if lead < 0x80:
        return lead, i + 1
    if lead < 0xE0:
        return (lead & 0x1F) << 6 | (text[i + 1] & 0x3F), i + 2
    if lead < 0xF0:
        return (lead & 0x0F) << 12 | (text[i + 1] & 0x3F) << 6 | (text[i + 2] & 0x3F), i + 3
    return (lead & 0x07) << 18 | (text[i + 1] & 0x3F) << 12 | (text[i + 2] & 0x3F) << 6 | (text[i + 3] & 0x3F), i + 4


@compiled
def joined_at(text, i, characters, neighbours):
    """May a merge join the characters before and behind byte `i`, where one begins?"""
    before = i - 1
    while text[before] & 0xC0 == 0x80:
        before -= 1
    left = characters[character_at(text, before)[0]]
    right = characters[character_at(text, i)[0]]
    return left >= 0 and right >= 0 and get(neighbours, pair_key(left, right)) != NO_MERGE


@compiled
def hashed(text, start, stop):
    """The key of a piece too long to be its own: FNV-1a with the highest bit set, which no short piece's key has."""
    code = np.uint64(0xCBF29CE484222325)
    for k in range(start, stop):
        code = (code ^ np.uint64(text[k])) * np.uint64(0x100000001B3)
    return code | np.uint64(1 << 63)


@compiled
def is_piece(text, start, stop, first, memory):
    """Is the long piece whose ids begin at `first` the one at text[start:stop]?"""
    at, same = memory.ids[first - 2], memory.ids[first - 1] == stop - start
    for k in range(stop - start if same else 0):
        same &= memory.text[at + k] == text[start + k]
    return same


@compiled
def keep(text, start, stop, key, place, ids, n, memory):
    """Remember a piece's ids[:n] in the empty slot `place`; where there is no room for it, forget all others instead."""
    n_bytes, used = stop - start, memory.used
    if 2 * used[0] >= len(memory.slots) or used[1] + n + 2 > len(memory.ids) or used[2] + n_bytes > len(memory.text):
        memory.slots[:] = 0
        used[:] = 0
        return
    first = used[1]
    if n_bytes > SHORT_BYTES:
        memory.ids[first], memory.ids[first + 1] = used[2], n_bytes
        for k in range(n_bytes):  # loops compile in a tenth of the time that slices take
            memory.text[used[2] + k] = text[start + k]
        used[2] += n_bytes
        first += 2
    for k in range(n):
        memory.ids[first + k] = ids[k]
    memory.slots[place, 0], memory.slots[place, 1] = key, (first << 32) | n
    used[0] += 1
    used[1] = first + n


@compiled
def spell(text, start, stop, characters, byte_ids, ids):
    """The ids before any merge: a character's own, or else one for each of its bytes. Returns how many."""
    n = 0
    while start < stop:
        code, behind = character_at(text, start)
        if characters[code] >= 0:
            ids[n] = characters[code]
            n += 1
        else:
            for k in range(start, behind):
                ids[n] = byte_ids[text[k]]
                n += 1
        start = behind
    return n


@compiled
def merge_short(ids, n, pairs, merges):
    """Merge ids[:n] in place, lowest rank first and leftmost among equals; `pairs` is room for n. Returns how many are left."""
    for k in range(n - 1):
        pairs[k] = get(merges, pair_key(ids[k], ids[k + 1]))
    while True:
        best, at = NO_MERGE, -1
        for k in range(n - 1):
            if pairs[k] < best:
                best, at = pairs[k], k
        if at < 0:
            return n
        ids[at] = best & LOW
        n -= 1
        for k in range(at + 1, n):
            ids[k], pairs[k - 1] = ids[k + 1], pairs[k]
        if at > 0:
            pairs[at - 1] = get(merges, pair_key(ids[at - 1], ids[at]))
        if at < n - 1:
            pairs[at] = get(merges, pair_key(ids[at], ids[at + 1]))


@compiled
def push(heap, size, value):
    k = size
    while k > 0 and heap[(k - 1) >> 1] > value:
        heap[k] = heap[(k - 1) >> 1]
        k = (k - 1) >> 1
    heap[k] = value


@compiled
def pop(heap, size):
    """The smallest of heap[:size]; the rest is heap[: size - 1]."""
    top, value, k = heap[0], heap[size - 1], 0
    size -= 1
    while 2 * k + 1 < size:
        child = 2 * k + 1
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[k] = heap[child]
        k = child
    heap[k] = value
    return top


@compiled
def merge_long(ids, n, pairs, merges):
    """As merge_short, in n log n: a heap of rank << 32 | place, and the ids as a linked list."""
    behind, before = np.arange(1, n + 1), np.arange(-1, n - 1)
    heap, size = np.empty(3 * n, np.int64), np.int64(0)  # n - 1 pairs at first and at most two more for each merge
    for k in range(n):
        pairs[k] = get(merges, pair_key(ids[k], ids[k + 1])) if k + 1 < n else NO_MERGE
        if pairs[k] != NO_MERGE:
            push(heap, size, (pairs[k] >> 32 << 32) | k)
            size += 1
    while size:
        top = pop(heap, size)
        size -= 1
        at = top & LOW
        if pairs[at] >> 32 != top >> 32:  # that pair is no more
            continue
        gone = behind[at]
        ids[at], pairs[gone], behind[at] = pairs[at] & LOW, NO_MERGE, behind[gone]
        ids[gone] = -1
        if behind[at] < n:
            before[behind[at]] = at
        for k in (before[at], at):
            if k >= 0:
                pairs[k] = get(merges, pair_key(ids[k], ids[behind[k]])) if behind[k] < n else NO_MERGE
                if pairs[k] != NO_MERGE:
                    push(heap, size, (pairs[k] >> 32 << 32) | k)
                    size += 1
    left = 0
    for k in range(n):
        if ids[k] >= 0:
            ids[left] = ids[k]
            left += 1
    return left


@compiled
def learn(text, start, stop, key, place, rules, memory, ids, pairs):
    """Merge a piece that is in no slot: its ids into `ids`, and into the empty slot `place` if it is not too long. Returns how many."""
    n = spell(text, start, stop, rules.characters, rules.byte_ids, ids)
    n = merge_short(ids, n, pairs, rules.merges) if n <= SHORT_SYMBOLS else merge_long(ids, n, pairs, rules.merges)
    if stop - start <= MAX_KEPT_BYTES:
        keep(text, start, stop, key, place, ids, n, memory)
    return n


@compiled
def encode(text, ends, rules, memory, ids):
    """Ids of documents in UTF-8 that end at the bytes `ends`, one behind the other into `ids`; returns where each one's end, int64.

    `ids`, int32, has room for one a byte, which is the most there can be. One thread at a time: `memory` is written to.
    """
    between, characters, neighbours, slots, kept = rules.between, rules.characters, rules.neighbours, memory.slots, memory.ids
    id_ends, pairs = np.empty(len(ends), np.int64), np.empty(len(text), np.int64)
    n, start, mask = np.int64(0), np.int64(0), np.uint64(len(slots) - 1)  # a plain 0 has all functions compiled twice
    for d in range(len(ends)):
        while start < ends[d]:
            before, stop = np.uint64(text[start]), start + 1
            key = np.uint64(256) | before  # a short piece is its own key: a 1 and then its bytes
            while stop < ends[d]:
                here = np.uint64(text[stop])
                join = between[before, here]
                if join != JOINED and (join == CUT or not joined_at(text, stop, characters, neighbours)):
                    break
                key, before, stop = (key << np.uint64(8)) | here, here, stop + 1
            is_long = stop - start > SHORT_BYTES
            if is_long:
                key = hashed(text, start, stop)
            place = home(key, len(slots))
            while slots[place, 0] != 0:
                first = np.int64(slots[place, 1] >> np.uint64(32))
                if slots[place, 0] == key and (not is_long or is_piece(text, start, stop, first, memory)):
                    count = np.int64(slots[place, 1] & np.uint64(LOW))
                    for k in range(count):
                        ids[n + k] = kept[first + k]
                    break
                place = (place + np.uint64(1)) & mask
            else:
                count = learn(text, start, stop, key, place, rules, memory, ids[n:], pairs)
            n += count
            start = stop
        id_ends[d] = n
    return id_ends
