"""BPE without a pre-tokenizer, as LLaMA's, many times as fast as the package `tokenizers` and with its ids, on one core; by numba.

What makes it fast and exact is one observation. A merge that crosses the place between two characters has a left part that ends in the
one and a right part that begins with the other. Where no merge of the vocabulary is so, none ever crosses, and the text may be cut there:
the pieces' ids are the text's, since merging goes by lowest rank, then leftmost, and pieces do not see each other. The surprise: so there
is no rule for words, spaces or lines here, and no document that must go to `tokenizers`. What could differ is told from the file alone
(`obstacle`); for what nobody thought of, a tokenizer must first agree with `tokenizers` on probes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np

SPACE = "\u2581"
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
NORMALIZER = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
PREFIX = {"type": "Prepend", "prepend": SPACE}
# Pieces seen before are remembered up to this number, and then all forgotten: 40 MB for each process at most.
MAX_PIECES = 1 << 19
PROBES = (
    "", " ", "\n", "a", " a", "  a ", "\u2581", "a\u2581 b", "\r\n\t\r", "\0", "x\0\0y", "</s> <s><unk>", "<0x41><0x0", "<fim_pad>",
    "def f(x):\n        return  x+ 17 # größer, 日本語, 😀\u200d😀\ufffd\u00a0e\u0301\n\n\n", "0123 4 5.67e-8", "if (!--x) {};\r\n" * 3,
    "a" * 999, " " * 999, "ab\n" * 333, "-=" * 99, "日本" * 99, "́" * 9, "\U0010ffff\x7f\x80\u07ff\u0800\uffff\U00010000",
)  # fmt: skip


def contents(inner: Any) -> dict[str, Any]:
    """The tokenizer.json of a `tokenizers.Tokenizer`, with all of its vocabulary: of two pieces with one id the package writes one."""
    content: dict[str, Any] = json.loads(inner.to_str())
    content["model"]["vocab"] = inner.get_vocab(with_added_tokens=False)
    return content


def obstacle(content: dict[str, Any]) -> str | None:
    """What among the `contents` of a tokenizer this module cannot do with the same ids; None if nothing."""
    model, normalizer = content["model"], content["normalizer"]
    if model["type"] != "BPE":
        return f"the model {model['type']}"
    vocab, byte_tokens = model["vocab"], set(BYTE_TOKENS)
    steps = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer]
    can_do = {
        "dropout": not model["dropout"],
        "ignore_merges": not model.get("ignore_merges"),
        "continuing_subword_prefix": not model["continuing_subword_prefix"],
        "end_of_word_suffix": not model["end_of_word_suffix"],
        "a pre-tokenizer": content["pre_tokenizer"] is None,
        "another normalizer": steps in ([NORMALIZER], [PREFIX, NORMALIZER]),
        "another post-processor": (content["post_processor"] or {}).get("type") in (None, "TemplateProcessing"),
        "added tokens that text may hold": all(token["special"] for token in content["added_tokens"]),
        "no byte fallback": model["byte_fallback"] and byte_tokens <= vocab.keys(),
        "no piece for a space": SPACE in vocab,
        "two pieces with one id": len(set(vocab.values())) == len(vocab),
        "merges of bytes or of nothing": all(byte_tokens.isdisjoint(merge) and all(merge) for merge in model["merges"]),
    }
    return next((what for what, done in can_do.items() if not done), None)


class Bpe:
    """Encodes as `inner`, a `tokenizers.Tokenizer`, does."""

    def __init__(self, kernels: Any, content: dict[str, Any]) -> None:
        """`kernels`: the module `crystal.data.bpe_kernels`; `content`: a tokenizer.json with no `obstacle`."""
        self._kernels = kernels
        self._prefix = " " if content["normalizer"]["type"] == "Sequence" and len(content["normalizer"]["normalizers"]) == 2 else ""
        self._rules = _rules(kernels, content["model"]["vocab"], [tuple(merge) for merge in content["model"]["merges"]])
        self._memory = kernels.Memory(
            slots=np.zeros((2 * MAX_PIECES, 2), np.uint64),
            ids=np.empty(8 * MAX_PIECES, np.int32),
            text=np.empty(16 * MAX_PIECES, np.uint8),
            used=np.zeros(3, np.int64),
        )

    @classmethod
    def of(cls, inner: Any) -> Bpe | None:
        """None where numba is not installed, or the ids could differ from `inner`'s. The first on a machine compiles: ten seconds."""
        content = contents(inner)
        if obstacle(content) or not inner.encode_special_tokens:
            return None
        try:
            kernels = import_module("crystal.data.bpe_kernels")
        except ImportError:
            return None
        bpe = cls(kernels, content)
        probes = [*PROBES, "".join(content["model"]["vocab"])]
        expected = inner.encode_batch(probes, add_special_tokens=False)
        agrees = all(ids.tolist() == other.ids for ids, other in zip(bpe.encode_batch(probes), expected, strict=True))
        return bpe if agrees else None

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """int32 ids of each text, on this thread and no other; not for two threads at a time. Memory: 12 bytes for each of text."""
        data = [(self._prefix + text).encode() if text else b"" for text in texts]
        ends = np.cumsum([len(document) for document in data], dtype=np.int64)
        text = np.frombuffer(b"".join([*data, b"\0"]), np.uint8)  # no buffer is empty
        ids = np.empty(len(text), np.int32)
        id_ends = self._kernels.encode(text, ends, self._rules, self._memory, ids)
        return [ids[first:end].copy() for first, end in pairwise([0, *id_ends.tolist()])]


def _rules(kernels: Any, vocab: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    characters = np.full(0x110000, -1, np.int32)
    for piece, number in vocab.items():
        if len(piece) == 1:
            characters[ord(piece)] = number
    characters[ord(" ")] = characters[ord(SPACE)]
    between = np.full((256, 256), kernels.LOOK, np.uint8)
    between[:128, :128] = kernels.CUT
    between[:, 0x80:0xC0] = kernels.JOINED  # inside a character
    neighbours = sorted({(left[-1], right[0]) for left, right in merges})
    for left, right in neighbours:
        one, other = (ord(character.replace(SPACE, " ")) for character in (left, right))
        if one < 128 and other < 128:
            between[one, other] = kernels.JOINED
    pairs = [(characters[ord(left)], characters[ord(right)], 0) for left, right in neighbours]
    ranked = [(vocab[left], vocab[right], rank << 32 | vocab[left + right]) for rank, (left, right) in enumerate(merges)]
    byte_ids = np.array([vocab[token] for token in BYTE_TOKENS], np.int32)
    return kernels.Rules(between, characters, byte_ids, _hash_table(kernels, pairs), _hash_table(kernels, ranked))


def _hash_table(kernels: Any, rows: list[tuple[int, int, int]]) -> np.ndarray:
    """At most half full."""
    table = np.zeros((2 << len(rows).bit_length(), 2), np.int64)
    kernels.fill(table, *np.array(rows, np.int64).reshape(-1, 3).T.copy())
    return table
