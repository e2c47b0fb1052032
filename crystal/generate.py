"""Completions: each distinct prompt through the model once, then token by token for many sequences at once.

The surprise: what a prompt gets does not depend on the batch size, nor on its neighbours, to the last bit. Its own pass has the shape of
the prompt alone, a step of decoding treats all rows alike (crystal/model/decode.py), and a draw takes its number from the sequence's seed
and the token's place. So rows need not keep in step: as one ends, the next prompt takes its row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from crystal import checkpoint
from crystal.config import ModelConfig, Sampling, require
from crystal.data.tokenizer import Tokenizer, load_tokenizer
from crystal.engine import LocalEngine
from crystal.model.decode import Decoder, decoder
from crystal.model.kvcache import Prompt
from crystal.model.transformer import Transformer
from crystal.runlog import Count
from crystal.sampling import draw, uniforms

Done = Callable[[int, list[int]], bool]


@torch.no_grad()
def generate(
    steps: Decoder,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    seeds: Sequence[int],
    eos_id: int,
    done: Done = lambda i, ids: False,
    ended: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """New token ids for each prompt, in order, without the end-of-text token; in float32 the same in whatever batches and company.

    steps: `decoder(model, config)`. prompts: non-empty lists of ids, equal ones share one pass; one that leaves no room for
    max_new_tokens in seq_len loses its beginning. seeds: one a prompt. done(i, ids), called after each token, may end prompt i early;
    ended() is called once for each text.
    """
    room = steps.config.seq_len - sampling.max_new_tokens
    require(room > 0, f"max_new_tokens={sampling.max_new_tokens}", f"fewer than the model's {steps.config.seq_len} tokens", "lower it")
    texts = _Texts([tuple(prompt[-room:]) for prompt in prompts], sampling, seeds, eos_id, done)
    cache, waiting = steps.cache(min(sampling.batch_size, len(prompts))), _passed(steps.model, steps.config, texts.prompts)
    while True:
        while len(cache) < min(sampling.batch_size, cache.rows) and (passed := next(waiting, None)):
            i, prompt, logits_1V = passed
            if texts.draw([i], logits_1V):
                ended()
            else:
                cache.add(i, prompt)
        if not len(cache):
            return texts.new
        own = cache.grow()
        for i in texts.draw(own, steps.step(cache, [texts.new[i][-1] for i in own])):
            cache.drop(i)
            ended()


class _Texts:
    """All prompts, what has been drawn for each, and what decides the next token."""

    def __init__(self, prompts: list[tuple[int, ...]], sampling: Sampling, seeds: Sequence[int], eos_id: int, done: Done) -> None:
        self.prompts, self.sampling, self.seeds, self.eos_id, self.done = prompts, sampling, seeds, eos_id, done
        self.new: list[list[int]] = [[] for _ in prompts]

    def draw(self, own: Sequence[int], logits_BV: Tensor) -> list[int]:
        """Draw the next token of each of these texts; which of them have come to their end."""
        ended, us = [], uniforms([self.seeds[i] for i in own], [len(self.new[i]) for i in own])
        for i, u, logits_V in zip(own, us, logits_BV.float().cpu().numpy(), strict=True):
            token, new = draw(logits_V, u, temperature=self.sampling.temperature, top_p=self.sampling.top_p), self.new[i]
            if token != self.eos_id:
                new.append(token)
            if token == self.eos_id or self.done(i, new) or len(new) == self.sampling.max_new_tokens:
                ended.append(i)
        return ended


def _passed(model: Transformer, config: ModelConfig, prompts: list[tuple[int, ...]]) -> Iterator[tuple[int, Prompt, Tensor]]:
    """Text by text, shorter prompts first: its prompt's keys and values, and the logits (1, V) of the first new token."""
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), prompts[i]))
    for ids, own in groupby(order, key=lambda i: prompts[i]):
        prompt = Prompt(config, len(ids))
        x_1TD = model.hidden(torch.tensor([ids], device=model.embed.weight.device), prompt)
        logits_1V = model.logits(x_1TD[:, -1])
        for i in own:
            yield i, prompt, logits_1V


@dataclass(frozen=True)
class Completer:
    """A checkpoint's model with its tokenizer: text in, text out."""

    model: Transformer
    config: ModelConfig
    tokenizer: Tokenizer

    @classmethod
    def load(cls, folder: Path, *, device: str) -> Completer:
        """Read a checkpoint folder, float32, to `device` ("cpu", "cuda"). Raises UserError where it is not whole."""
        config = checkpoint.read_model(folder)  # first: it looks whether the folder is whole
        return cls._of(checkpoint.read_weights(folder), config, folder / "tokenizer.json", device)

    @classmethod
    def of(cls, engine: LocalEngine, config: ModelConfig, tokenizer: Path, *, device: str) -> Completer:
        """The weights that a live engine has now, also where they lie in shards, with the tokenizer.json in `tokenizer`."""
        return cls._of(engine.state_dict(), config, tokenizer, device)

    @classmethod
    def _of(cls, weights: Mapping[str, Tensor], config: ModelConfig, tokenizer: Path, device: str) -> Completer:
        model = Transformer(config)
        model.load_state_dict(weights)
        return cls(model.eval().to(device), config, load_tokenizer(tokenizer))

    def complete(self, prompts: Sequence[str], sampling: Sampling, *, stops: Sequence[tuple[str, ...]], seeds: Sequence[int]) -> list[str]:
        """A completion for each prompt, ended early once one of its stop strings has come up (and not cut there)."""
        ids = [[self.tokenizer.eos_id, *self.tokenizer.encode(prompt).tolist()] for prompt in prompts]
        return self._texts(ids, sampling, stops=stops, seeds=seeds)

    def alone(self, completion: str) -> str:
        """The text that a completion's tokens have if they are decoded without their prompt."""
        return completion.removeprefix(" ") if self._loses_space else completion

    def infill(
        self, pairs: Sequence[tuple[str, str]], sampling: Sampling, *, stops: Sequence[tuple[str, ...]], seeds: Sequence[int]
    ) -> list[str]:
        """For each (prefix, suffix) the text between, asked for in prefix-suffix-middle order (Bavarian et al. 2022); stops as above."""
        ids = [self._infill_ids(prefix, suffix, sampling.max_new_tokens) for prefix, suffix in pairs]
        return self._texts(ids, sampling, stops=stops, seeds=seeds)

    def _infill_ids(self, prefix: str, suffix: str, max_new_tokens: int) -> list[int]:
        special = self.tokenizer.special
        before, behind = (self.tokenizer.encode(text).tolist() for text in (prefix, suffix))
        room = self.config.seq_len - max_new_tokens - 4
        expected = f"at most {self.config.seq_len - 6}, so that the model's {self.config.seq_len} tokens hold some of prompt and suffix"
        require(room >= 2, f"max_new_tokens={max_new_tokens} with a suffix", expected, "lower it")
        # What does not fit goes from the far ends.
        behind = behind[: max(room // 2, room - len(before))]
        before = before[max(len(before) + len(behind) - room, 0) :]
        return [self.tokenizer.eos_id, special["<fim_prefix>"], *before, special["<fim_suffix>"], *behind, special["<fim_middle>"]]

    def _texts(self, ids: list[list[int]], sampling: Sampling, *, stops: Sequence[tuple[str, ...]], seeds: Sequence[int]) -> list[str]:
        watches = [Watch(self._text, strings) for strings in stops]

        def done(i: int, new_ids: list[int]) -> bool:
            return watches[i].met(new_ids)

        with Count("completions", len(ids)) as count:
            new = generate(self._steps, ids, sampling, seeds=seeds, eos_id=self.tokenizer.eos_id, done=done, ended=count.add)
        return [self._text(row) for row in new]

    @cached_property
    def _steps(self) -> Decoder:
        return decoder(self.model, self.config)

    def _text(self, ids: Sequence[int]) -> str:
        """The text of ids that go on from other text: LLaMA's decoder strips a space at the very beginning, here a line end."""
        return self.tokenizer.decode([self._line_end, *ids])[1:]

    @cached_property
    def _loses_space(self) -> bool:
        line_end, both = (self.tokenizer.encode(text).tolist() for text in ("\n", "\n x"))
        return self.tokenizer.decode(both[len(line_end) :]) == "x"

    @cached_property
    def _line_end(self) -> int:
        return int(self.tokenizer.encode("\n")[-1])


class Watch:
    """Looks for stop strings in a text that grows by a token at a time, and decodes only what is new of it."""

    def __init__(self, text: Callable[[Sequence[int]], str], stops: tuple[str, ...]) -> None:
        self.text, self.stops = text, stops
        self.before, self.n_before = "", 0  # the end of the first n_before tokens' text, as much as can be of a stop string

    def met(self, ids: list[int]) -> bool:
        """Whether the text of `ids` holds a stop string; to be asked after every token."""
        if not self.stops:
            return False
        text = self.before + self.text(ids[self.n_before :])
        if not text.endswith("\ufffd"):  # the first bytes of a character, perhaps
            self.before, self.n_before = text[-max(map(len, self.stops)) :], len(ids)
        # Decoded anew to be sure: pieces of a text do not decode to its pieces where bytes are no UTF-8.
        return any(stop in text for stop in self.stops) and any(stop in self.text(ids) for stop in self.stops)
