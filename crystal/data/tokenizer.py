"""LLaMA-style byte-fallback BPE with CrystalCoder's 18 added tokens: train one, or load a tokenizer.json.

The surprise: text can never give a special token. `</s>` in a document is encoded as ordinary pieces, so an end of
document in the data is always a real one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from crystal.config import UserError
from crystal.data.bpe import BYTE_TOKENS, SPACE, Bpe
from crystal.data.optional import need
from crystal.runlog import write_text

# CrystalCoder's order: id 32000 onwards behind LLaMA's pieces.
ADDED_TOKENS = (
    "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>", "<filename>", "<gh_stars>", "<issue_start>",
    "<issue_comment>", "<issue_closed>", "<jupyter_start>", "<jupyter_text>", "<jupyter_code>", "<jupyter_output>",
    "<empty_output>", "<commit_before>", "<commit_msg>", "<commit_after>", "<reponame>",
)  # fmt: skip
FIM_PAD = "<fim_pad>"
EOS = "</s>"
BASE_TOKENS = ("<unk>", "<s>", EOS)
# A piece never mixes letters with punctuation, so that no merge can spell <0x41> or </s>.
PIECES = "|".join(
    (
        rf"{SPACE}?[\p{{L}}\p{{M}}_]+",  # a word with its space
        r"\p{N}",  # one digit
        rf"{SPACE}?[^\s\p{{L}}\p{{M}}\p{{N}}_{SPACE}]+",  # punctuation with its space
        rf"[\s{SPACE}]+(?![^\s{SPACE}])",  # line ends and indentation, but for the space of the next word
        rf"[\s{SPACE}]+",
    )
)
CHARACTER_COVERAGE = 0.9999
ALPHABET_SHARE = 1 / 4  # of the pieces that are learned: at most so many single characters


class Tokenizer:
    """A loaded tokenizer.json with the 18 added tokens; `special` maps each of them and the base tokens to its id.

    It can be pickled. One thread at a time may use it; two processes may, also when forked.
    """

    def __init__(self, inner: Any, sha256: str) -> None:
        inner.encode_special_tokens = True  # as text; a pickled one has forgotten it
        self._inner = inner
        self.sha256 = sha256
        self.n_ids: int = inner.get_vocab_size(with_added_tokens=True)
        self.special: dict[str, int] = {name: inner.token_to_id(name) for name in (*BASE_TOKENS, *ADDED_TOKENS)}
        self.eos_id = self.special[EOS]

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (self._inner, self.sha256)

    @cached_property
    def _bpe(self) -> Bpe | None:
        return Bpe.of(self._inner)

    @property
    def engine(self) -> str:
        """What `encode_batch` runs on: "numba", or "tokenizers" where that is not installed or the file is not LLaMA-like.

        To ask takes a second or two, and ten the first time on a machine: numba compiles, and keeps what it has compiled.
        """
        return "numba" if self._bpe else "tokenizers"

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """int32 ids of each text, no BOS or EOS; on one core with the engine "numba", else on all. The ids are the same."""
        if self._bpe:
            return self._bpe.encode_batch(texts)
        encodings = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def encode(self, text: str) -> np.ndarray:
        """int32 ids of one text, no BOS or EOS; not worth waiting for numba."""
        return np.array(self._inner.encode(text, add_special_tokens=False).ids, dtype=np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray, *, skip_special: bool = True) -> str:
        """The text of `ids`. LLaMA's own file strips one leading space, which is its dummy prefix."""
        return str(self._inner.decode([int(i) for i in ids], skip_special_tokens=skip_special))

    def text_bytes(self) -> np.ndarray:
        """How many bytes of text each id stands for, int64 (n_ids,): none for special tokens."""
        pieces = [self._inner.id_to_token(i) for i in range(self.n_ids)]
        sizes = [1 if piece in BYTE_TOKENS else len(piece.replace(SPACE, " ").encode()) for piece in pieces]
        sizes = [0 if piece in self.special else size for piece, size in zip(pieces, sizes, strict=True)]
        return np.array(sizes, np.int64)

    def to_json(self) -> str:
        """A tokenizer.json that gives other programs the same ids: with the 18 tokens, and nothing put before a text."""
        content = json.loads(self._inner.to_str())
        content["post_processor"] = None
        return str(type(self._inner).from_str(json.dumps(content)).to_str(pretty=True)) + "\n"


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load tokenizer.json, adding those of the 18 tokens that it lacks; UserError if missing or corrupt."""
    tokenizers = need("tokenizers")
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); expected a tokenizer.json; give data.tokenizer=FILE") from error
    try:
        inner = tokenizers.Tokenizer.from_str(_with_plain_special_tokens(data))
    except Exception as error:  # the package raises bare Exception on a bad file
        raise UserError(f"{path} is not a tokenizer.json ({error}); expected the format of tokenizers; fetch it again") from error
    for name in BASE_TOKENS:
        if inner.token_to_id(name) is None:
            raise UserError(f"{path} has no piece {name}; expected a LLaMA-style tokenizer; set another tokenizer")
    inner.no_truncation()
    inner.no_padding()
    inner.add_special_tokens(list(BASE_TOKENS + ADDED_TOKENS))
    return Tokenizer(inner, hashlib.sha256(data).hexdigest())


def _with_plain_special_tokens(data: bytes) -> str:
    """As JSON. LLaMA's file has its special tokens normalised, which makes id 2 mean U+2581 and </s> to tokenizers."""
    content = json.loads(data)
    for token in content["added_tokens"]:
        token["normalized"] = False
    return json.dumps(content)


def train_tokenizer(texts: Iterable[str], vocab_size: int, path: str | Path) -> None:
    """Train on `texts` (held in memory) and write tokenizer.json with exactly `vocab_size` ids, the 18 added ones last.

    The same texts give the same file. decode(encode(t)) == t, but a literal U+2581 becomes a space. UserError when the
    texts are too few for that many pieces.
    """
    tokenizers = need("tokenizers")
    texts = list(texts)
    n_pieces = vocab_size - len(ADDED_TOKENS)
    room = n_pieces - len(BASE_TOKENS) - len(BYTE_TOKENS)
    if room < 1:
        raise UserError(f"vocab_size {vocab_size} is too small; expected at least {vocab_size - room + 1}; raise data.vocab_size")
    alphabet = _alphabet(texts, max(1, int(room * ALPHABET_SHARE)))
    learner = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True))
    _set_pipeline(tokenizers, learner)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=n_pieces,
        special_tokens=list(BASE_TOKENS + BYTE_TOKENS),
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    model = json.loads(learner.to_str())["model"]
    if len(model["vocab"]) != n_pieces:
        raise UserError(f"the text gave {len(model['vocab'])} pieces; expected {n_pieces}; lower vocab_size or give more text")
    write_text(Path(path), _assembled(tokenizers, model).to_str(pretty=True) + "\n")


def _assembled(tokenizers: Any, model: dict[str, Any]) -> Any:
    """The learned pieces as a fresh tokenizer: in the learner the byte pieces are special, which they must not stay."""
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    bpe = tokenizers.models.BPE(model["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = tokenizers.Tokenizer(bpe)
    _set_pipeline(tokenizers, tokenizer)
    tokenizer.add_special_tokens(list(BASE_TOKENS + ADDED_TOKENS))
    return tokenizer


def _set_pipeline(tokenizers: Any, tokenizer: Any) -> None:
    decoders = tokenizers.decoders
    tokenizer.normalizer = tokenizers.normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(PIECES), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])


def _alphabet(texts: list[str], limit: int) -> list[str]:
    """The commonest characters, chosen here because the trainer's own cut breaks ties by hash order."""
    counts = np.zeros(0x110000, dtype=np.int64)
    for text in texts:
        codes = np.frombuffer(text.replace(" ", SPACE).encode("utf-32-le"), np.uint32)
        found, times = np.unique(codes, return_counts=True)
        counts[found] += times
    order = np.argsort(-counts, kind="stable")[: max(1, int((counts > 0).sum()))]
    covered = np.cumsum(counts[order]) / max(1, counts.sum())
    keep = min(limit, int(np.searchsorted(covered, CHARACTER_COVERAGE)) + 1, len(order))
    return [chr(code) for code in order[:keep]]
