"""Completions with a KV cache: one prefill a batch, then token by token.

The surprise: every sequence draws from its own generator, seeded by the caller, so what one prompt gets does not depend on which
others share its batch (up to rounding of the logits).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from crystal import checkpoint
from crystal.config import ModelConfig, Sampling, require
from crystal.data.tokenizer import Tokenizer, load_tokenizer
from crystal.model.kvcache import KVCache
from crystal.model.transformer import Transformer

STOP_WINDOW = 16  # newest tokens that are searched for a stop string, longer than any stop string


@torch.no_grad()
def generate(
    model: Transformer,
    config: ModelConfig,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    seeds: Sequence[int],
    eos_id: int,
    done: Callable[[int, list[int]], bool] = lambda i, ids: False,
) -> list[list[int]]:
    """New token ids for each prompt, in order, without the end-of-text token.

    prompts: non-empty lists of ids; one that leaves no room for max_new_tokens in seq_len loses its beginning. seeds: one a prompt.
    done(i, ids) may end prompt i early, after the ids so far.
    """
    room = config.seq_len - sampling.max_new_tokens
    require(room > 0, f"max_new_tokens={sampling.max_new_tokens}", f"fewer than the model's {config.seq_len} tokens", "lower it")
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # alike lengths share a batch
    results: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), sampling.batch_size):
        batch = order[start : start + sampling.batch_size]
        session = _Session(model, config, [list(prompts[i])[-room:] for i in batch], max_new_tokens=sampling.max_new_tokens)
        generators = [torch.Generator().manual_seed(seeds[i]) for i in batch]
        for left in reversed(range(sampling.max_new_tokens)):
            tokens = _sample(session.logits_BV.float().cpu(), generators, temperature=sampling.temperature, top_p=sampling.top_p)
            going = []
            for row, (i, token) in enumerate(zip(batch, tokens, strict=True)):
                if token == eos_id:
                    continue
                results[i].append(token)
                if not done(i, results[i]):
                    going.append(row)
            if not (going and left):
                break
            session.step(tokens, going)
            batch, generators = [batch[r] for r in going], [generators[r] for r in going]
    return results


class _Session:
    """A batch on its way: its cache and the logits (B, V) of each row's next token."""

    def __init__(self, model: Transformer, config: ModelConfig, prompts: list[list[int]], *, max_new_tokens: int) -> None:
        self.model, self.device = model, model.embed.weight.device
        lengths_B = torch.tensor([len(p) for p in prompts], device=self.device)
        longest = max(map(len, prompts))
        max_len = min(config.seq_len, longest + max_new_tokens)
        self.cache = KVCache(config, batch=len(prompts), max_len=max_len, dtype=model.embed.weight.dtype, device=self.device)
        ids_BT = torch.tensor([p + [0] * (longest - len(p)) for p in prompts], device=self.device)
        x_BTD = model.hidden(ids_BT, self.cache)
        self.cache.advance(lengths_B, longest=longest)
        self.logits_BV = model.logits(x_BTD[torch.arange(len(prompts)), lengths_B - 1])

    def step(self, tokens: list[int], going: list[int]) -> None:
        """Take up each row's token; only the rows `going` stay."""
        if len(going) < len(tokens):
            self.cache.keep(torch.tensor(going, device=self.device))
        ids_B1 = torch.tensor([[tokens[row]] for row in going], device=self.device)
        x_B1D = self.model.hidden(ids_B1, self.cache)
        self.cache.advance(torch.ones(len(going), dtype=torch.long, device=self.device), longest=self.cache.longest + 1)
        self.logits_BV = self.model.logits(x_B1D[:, 0])


def _sample(logits_BV: Tensor, generators: list[torch.Generator], *, temperature: float, top_p: float) -> list[int]:
    """One token a row: greedy at temperature 0, otherwise from the smallest set of tokens that holds top_p of the probability."""
    if temperature == 0:
        return logits_BV.argmax(-1).tolist()
    p_BV, index_BV = (logits_BV / temperature).softmax(-1).sort(descending=True, stable=True)
    p_BV = p_BV.masked_fill(p_BV.cumsum(-1) - p_BV >= top_p, 0.0)
    # The exponential race: argmax(p / e) with e ~ Exp(1) draws in proportion to p.
    race_BV = torch.stack([torch.empty(p_BV.shape[1]).exponential_(generator=generator) for generator in generators])
    choice_B1 = (p_BV / race_BV).argmax(-1, keepdim=True)
    return index_BV.gather(1, choice_B1)[:, 0].tolist()


@dataclass(frozen=True)
class Completer:
    """A checkpoint's model with its tokenizer: text in, text out."""

    model: Transformer
    config: ModelConfig
    tokenizer: Tokenizer

    @classmethod
    def load(cls, folder: Path, *, device: str) -> Completer:
        """Read a checkpoint folder, float32, to `device` ("cpu", "cuda"). Raises UserError where it is not whole."""
        config = checkpoint.read_model(folder)
        model = Transformer(config)
        model.load_state_dict(checkpoint.read_weights(folder))
        return cls(model.eval().to(device), config, load_tokenizer(folder / "tokenizer.json"))

    def complete(self, prompts: Sequence[str], sampling: Sampling, *, stops: Sequence[tuple[str, ...]], seeds: Sequence[int]) -> list[str]:
        """A completion for each prompt, ended early once one of its stop strings has come up (and not cut there)."""
        ids = [[self.tokenizer.eos_id, *self.tokenizer.encode(prompt).tolist()] for prompt in prompts]
        return self._texts(ids, sampling, stops=stops, seeds=seeds)

    def infill(self, prefix: str, suffix: str, sampling: Sampling, *, seed: int) -> str:
        """The text between `prefix` and `suffix`, asked for in prefix-suffix-middle order (Bavarian et al. 2022)."""
        special = self.tokenizer.special
        before, behind = (self.tokenizer.encode(text).tolist() for text in (prefix, suffix))
        room = self.config.seq_len - sampling.max_new_tokens - 4
        expected = f"at most {self.config.seq_len - 6}, so that the model's {self.config.seq_len} tokens hold some of prompt and suffix"
        require(room >= 2, f"max_new_tokens={sampling.max_new_tokens} with a suffix", expected, "lower it")
        # What does not fit goes from the far ends.
        behind = behind[: max(room // 2, room - len(before))]
        before = before[max(len(before) + len(behind) - room, 0) :]
        ids = [self.tokenizer.eos_id, special["<fim_prefix>"], *before, special["<fim_suffix>"], *behind, special["<fim_middle>"]]
        return self._texts([ids], sampling, stops=[()], seeds=[seed])[0]

    def _texts(self, ids: list[list[int]], sampling: Sampling, *, stops: Sequence[tuple[str, ...]], seeds: Sequence[int]) -> list[str]:
        def done(i: int, new_ids: list[int]) -> bool:
            if not stops[i]:
                return False
            tail = self._text(new_ids[-STOP_WINDOW:])
            return any(stop in tail for stop in stops[i])

        new = generate(self.model, self.config, ids, sampling, seeds=seeds, eos_id=self.tokenizer.eos_id, done=done)
        return [self._text(row) for row in new]

    def _text(self, ids: list[int]) -> str:
        """The text of ids that go on from other text: LLaMA's decoder strips a space at the very beginning, here a line end."""
        return self.tokenizer.decode([self._line_end, *ids])[1:]

    @cached_property
    def _line_end(self) -> int:
        return int(self.tokenizer.encode("\n")[-1])
