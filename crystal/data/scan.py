"""The inner loops of decontamination, compiled: the words of UTF-8 bytes, a hash of every few in a row, exact comparison.

A word is a run of [A-Za-z0-9_] and bytes from 0x80 on, ASCII in lower case; all else is between words. The surprise: so are `\\n`, `\\"`
and `&lt;` where they are spelled out, so that code in a notebook's JSON or on a web page has the words of the code.
numba is imported at once here: `decontaminate` imports this module when it is asked for.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from crystal.data.bpe_kernels import compiled

# What of a pattern must be the same: its words; its tokens, but names only by where they first occurred (Baker 1993); its tokens.
WORDS, SHAPE, TOKENS = 0, 1, 2
# Python's keywords and usual functions: not names, and nothing of a problem's own.
FIXED = b"""
    and as assert async await break class continue def del elif else except false finally for from global if import in is lambda none
    nonlocal not or pass raise return true try while with yield abs all any bin bool bytes chr dict divmod enumerate filter float format
    frozenset hash hex int isinstance iter len list map max min next object oct ord pow print range repr reversed round self set slice
    sorted str sum super tuple type zip exception indexerror keyerror typeerror valueerror math re
""".split()

ESCAPE, ENTITY, LAST_CLASS = 1, 2, np.uint8(2)  # classes of bytes: 0 between words; a word's own are themselves, in lower case
BACKSLASH, HASH, DOT, SEMICOLON, LINE_END, NINE = 92, 35, 46, 59, 10, 57
SPACE, NAME = 32, 1  # in canonical bytes: behind each word; before a name's number
MAX_NAMES = 250
ENTITY_BYTES, COMMENT_BYTES = 8, 512  # at most: a minified file is one line
REACH = 64  # most words from where a pattern begins to the end of its key
FACTOR = np.uint64(0x9E3779B97F4A7C15)
# Bitmaps of half a megabyte, that a core's own cache holds, 16 KiB and 8 KiB.
WORDS_SHIFT, SHAPES_SHIFT, FIXED_SHIFT = np.uint64(64 - 22), np.uint64(64 - 17), np.uint64(64 - 16)
U0, U1, U3, U7 = np.uint64(0), np.uint64(1), np.uint64(3), np.uint64(7)


class Index(NamedTuple):
    """What is looked for: patterns, found by the hash of some of their words."""

    key_words: int
    keys: np.ndarray  # uint64, sorted
    word_bits: np.ndarray  # bitmap of the keys of kind WORDS
    shape_bits: np.ndarray  # and of the others
    patterns: np.ndarray  # int64 (len(keys), 5): problem, kind, how many words before the key it begins, span in `blob`
    blob: np.ndarray  # uint8, in canonical form


def bitmap(keys: np.ndarray, shift: np.uint64) -> np.ndarray:
    """2^(64 - shift) bits, as uint8, of which those of `keys` are set."""
    bits = np.zeros(1 << (61 - int(shift)), np.uint8)
    places = keys * FACTOR >> shift
    np.bitwise_or.at(bits, places >> U3, np.uint8(1) << (places & U7).astype(np.uint8))
    return bits


def _classes() -> np.ndarray:
    classes = np.zeros(256, np.uint8)
    for byte in (*b"0123456789abcdefghijklmnopqrstuvwxyz_", *range(0x80, 0x100)):
        classes[byte] = byte
    for byte in b"ABCDEFGHIJKLMNOPQRSTUVWXYZ":
        classes[byte] = byte + 32
    classes[BACKSLASH], classes[ord("&")] = ESCAPE, ENTITY
    return classes


def _fixed() -> np.ndarray:
    keys = np.zeros(len(FIXED), np.uint64)
    for k, word in enumerate(FIXED):
        for byte in word:
            keys[k : k + 1] = (keys[k : k + 1] ^ np.uint64(byte)) * FACTOR
    return bitmap(keys, FIXED_SHIFT)


CLASSES, FIXED_BITS = _classes(), _fixed()
IGNORED = (np.arange(256) <= SPACE) | np.isin(np.arange(256), list(b"()\"',;`"))  # what formatters add and take away


@compiled
def _has(bits, key, shift):  # type: ignore[no-untyped-def]
    place = key * FACTOR >> shift
    return bits[place >> U3] >> np.uint8(place & U7) & np.uint8(1)


@compiled
def _behind_mark(data, i, stop):  # type: ignore[no-untyped-def]
    """Behind the backslashes at `i` and the n, r or t that they make a blank of; behind the character reference, or bare &, at `i`."""
    if data[i] == BACKSLASH:
        while i < stop and data[i] == BACKSLASH:
            i += U1
        return i + U1 if i < stop and (data[i] == 110 or data[i] == 114 or data[i] == 116) else i
    for j in range(i + U1, min(i + np.uint64(ENTITY_BYTES), stop)):
        if data[j] == SEMICOLON:
            return np.uint64(j) + U1
        if CLASSES[data[j]] <= LAST_CLASS and data[j] != HASH:
            break
    return i + U1


@compiled
def _next_token(data, i, stop, punctuation):  # type: ignore[no-untyped-def]
    """(start, end) of the first token from `i` on, (stop, stop) where there is none.

    Tokens are words and, with `punctuation`, its single bytes but for those IGNORED; a comment is then no token.
    """
    while i < stop:
        kind = CLASSES[data[i]]
        if kind > LAST_CLASS:
            start = i
            while i < stop and CLASSES[data[i]] > LAST_CLASS:
                i += U1
            return start, i
        if kind != U0 and (_behind_mark(data, i, stop) > i + U1 or data[i] == BACKSLASH):
            i = _behind_mark(data, i, stop)
        elif not punctuation or IGNORED[data[i]]:
            i += U1
        elif data[i] == HASH:
            end = min(i + np.uint64(COMMENT_BYTES), stop)
            while i < end and data[i] != LINE_END and (data[i] != BACKSLASH or _behind_mark(data, i, stop) == i + U1):
                i += U1
        else:
            return i, i + U1
    return stop, stop


@compiled
def hashed(data, start, end):  # type: ignore[no-untyped-def]
    """uint64 of the word data[start:end]."""
    word = U0
    for j in range(start, end):
        word = (word ^ np.uint64(CLASSES[data[j]])) * FACTOR
    return word


@compiled
def _is_name(data, start, word):  # type: ignore[no-untyped-def]
    """Whether it may be named otherwise: not a number, nor an attribute, nor FIXED."""
    return (data[start] > NINE) & (data[start - U1] != DOT) & (_has(FIXED_BITS, word, FIXED_SHIFT) == 0)


@compiled
def _equal(data, start, end, other, other_end):  # type: ignore[no-untyped-def]
    while start < end and other < other_end and CLASSES[data[start]] == CLASSES[data[other]]:
        start, other = start + U1, other + U1
    return start == end and other == other_end


@compiled
def _spell(data, start, end, kind, names, n_names, out):  # type: ignore[no-untyped-def]
    """Write the token to `out` as it is compared; (bytes it takes, how many of `names`, spans in `data`, are known now)."""
    if CLASSES[data[start]] <= LAST_CLASS:
        out[0] = data[start]
        return 1, n_names
    if kind == SHAPE and _is_name(data, start, hashed(data, start, end)):
        k = 0
        while k < n_names and not _equal(data, start, end, names[k, 0], names[k, 1]):
            k += 1
        if k == n_names and k < len(names):
            names[k, 0], names[k, 1], n_names = start, end, n_names + 1
        if k < n_names:
            out[0], out[1], out[2] = NAME, k, SPACE
            return 3, n_names
    n = 0
    if end - start >= np.uint64(len(out)):
        return len(out) + 1, n_names
    for j in range(start, end):
        out[n] = CLASSES[data[j]]
        n += 1
    out[n] = SPACE
    return n + 1, n_names


@compiled
def canonical(data, kind):  # type: ignore[no-untyped-def]
    """(bytes, ends): all tokens of `data` in the form that is compared, a SPACE behind each word, and where in the bytes each ends."""
    out, ends, n, n_tokens = np.empty(4 * len(data) + 4, np.uint8), np.empty(len(data), np.int64), 0, 0
    names, n_names = np.empty((MAX_NAMES, 2), np.uint64), 0
    stop = np.uint64(len(data))
    start, end = _next_token(data, U0, stop, kind != WORDS)
    while start < end:
        written, n_names = _spell(data, start, end, kind, names, n_names, out[n:])
        n += written
        ends[n_tokens] = n
        n_tokens += 1
        start, end = _next_token(data, end, stop, kind != WORDS)
    return out[:n], ends[:n_tokens]


@compiled
def _starts(blob, a, token, n):  # type: ignore[no-untyped-def]
    j = 0
    while j < n and blob[a + j] == token[j]:
        j += 1
    return j == n


@compiled
def _match(data, start, stop, blob, kind, names, token):  # type: ignore[no-untyped-def]
    """Where the tokens end that begin at `start` and are `blob` in canonical form; 0 where others are there."""
    end, a, n_names = start, 0, 0
    while a < len(blob):
        start, end = _next_token(data, end, stop, kind != WORDS)
        if start == end:
            return U0
        written, n_names = _spell(data, start, end, kind, names, n_names, token)
        if a + written > len(blob) or not _starts(blob, a, token, written):
            return U0
        a += written
    return end


@compiled
def keys_of(data, kind, size):  # type: ignore[no-untyped-def]
    """uint64 of each `size` words in a row of `data`, as `scan` looks them up; how many are no names. `data` begins with a blank."""
    keys, fixed, n = np.zeros(len(data) + 1, np.uint64), np.zeros(len(data) + 1, np.int64), 0
    stop = np.uint64(len(data))
    start, end = _next_token(data, U0, stop, False)
    while start < end:
        word = hashed(data, start, end)
        named = _is_name(data, start, word)
        if kind != WORDS and named:
            word = U1
        for k in range(max(0, n - size + 1), n + 1):
            keys[k] = keys[k] * FACTOR + word
            fixed[k] += not named
        n += 1
        start, end = _next_token(data, end, stop, False)
    n = max(0, n - size + 1)
    return keys[:n] + (U0 if kind == WORDS else U1), fixed[:n]


@compiled
def scan(data, ends, index, n_problems):  # type: ignore[no-untyped-def]
    """int64 (k, 5): text, problem, kind, start, end of the first match of each kind with each problem in each text.

    `data`: uint8, the texts, a byte that is in no word before each and behind the last; `ends`: uint64, where in `data` each ends.
    """
    found, count = np.empty((8 * n_problems, 5), np.int64), np.zeros(1, np.int64)
    seen = np.full((n_problems, 3), -1, np.int64)
    names, token = np.empty((MAX_NAMES, 2), np.uint64), np.empty(len(index.blob), np.uint8)
    start = U0
    for text in range(len(ends)):
        if count[0] + 3 * n_problems > len(found):
            found = np.concatenate((found, np.empty_like(found)))
        _scan_text(data, start, ends[text], text, index, names, token, seen, found, count)
        start = ends[text]
    return found[: count[0]]


@compiled
def _scan_text(data, i, stop, text, index, names, token, seen, found, count):  # type: ignore[no-untyped-def]
    """Append the matches of one text to `found`, of which `count[0]` rows are in use. Growing it in here would halve the speed."""
    word_bits, shape_bits, mask = index.word_bits, index.shape_bits, np.uint64(REACH - 1)
    words, shapes, starts = np.zeros(REACH, np.uint64), np.zeros(REACH, np.uint64), np.zeros(REACH, np.uint64)
    key_words, leaving = np.uint64(index.key_words), U1
    for _ in range(index.key_words):
        leaving *= FACTOR
    n, rolled, rolled_shape = U0, U0, U0
    while i < stop:
        byte = CLASSES[data[i]]
        if byte <= LAST_CLASS:
            i = i + U1 if byte == 0 else _behind_mark(data, i, stop)
            continue
        start, word = i, U0
        while byte > LAST_CLASS:
            word = (word ^ np.uint64(byte)) * FACTOR
            i += U1
            byte = CLASSES[data[i]]
        here = n & mask
        shape = U1 if _is_name(data, start, word) else word
        rolled = rolled * FACTOR + word - words[(n - key_words) & mask] * leaving
        rolled_shape = rolled_shape * FACTOR + shape - shapes[(n - key_words) & mask] * leaving
        words[here], shapes[here], starts[here] = word, shape, start
        n += U1
        if _has(word_bits, rolled, WORDS_SHIFT):
            _look_up(data, stop, text, n, rolled, index, starts, names, token, seen, found, count)
        if _has(shape_bits, rolled_shape + U1, SHAPES_SHIFT):
            _look_up(data, stop, text, n, rolled_shape + U1, index, starts, names, token, seen, found, count)


@compiled
def _look_up(data, stop, text, n, key, index, starts, names, token, seen, found, count):  # type: ignore[no-untyped-def]
    """Compare what `key` at the end of `n` words stands for, exactly."""
    row = np.searchsorted(index.keys, key)
    while row < len(index.keys) and index.keys[row] == key:
        problem, kind, before, a, b = index.patterns[row]
        row += 1
        back = np.uint64(index.key_words + before)
        if n < back or seen[problem, kind] == text:
            continue
        start = starts[(n - back) & np.uint64(REACH - 1)]
        end = _match(data, start, stop, index.blob[a:b], kind, names, token)
        if end > U0:
            seen[problem, kind] = text
            found[count[0]] = (text, problem, kind, np.int64(start), np.int64(end))
            count[0] += 1
