"""A Crystal checkpoint as lm-eval's language model: log-likelihoods and completions.

Right of a text come other texts' paddings, which a causal model never looks at. Choices that differ in their last token only (the
letters of MMLU) share one pass.

The surprise: our documents begin behind an end-of-text token, so every context does too. lm-eval's own `hf` model puts nothing before
those of an export, unless the text itself begins with `</s>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from tqdm import tqdm

from benchmarks.code.protocols import truncate
from crystal.config import Sampling, require
from crystal.generate import Completer

MAX_GEN_TOKS = 256  # what lm-eval's own models take where a task does not say
OPTIONS = ("until", "max_gen_toks", "max_new_tokens", "do_sample", "temperature", "top_p")

Pair = tuple[tuple[str, str], list[int], list[int]]  # the texts, the ids of the context, the ids to be scored


@register_model("crystal")
class CrystalLM(TemplateLM):
    """`checkpoint`: a folder, or what has been loaded from one. `batch_size`: texts at once. `seed`: of what is drawn."""

    def __init__(self, checkpoint: str | Path | Completer, *, batch_size: int | str = 8, device: str | None = None, seed: int = 1) -> None:
        super().__init__()
        good = str(batch_size).isdecimal() and int(batch_size) > 0
        require(good, f"batch_size={batch_size}", "a count of texts that are scored at once", "give a number")
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.completer = checkpoint if isinstance(checkpoint, Completer) else Completer.load(Path(checkpoint), device=device)
        self.batch_size, self.seed = int(batch_size), seed
        self._device = self.completer.model.embed.weight.device

    @property
    def eot_token_id(self) -> int:
        return self.completer.tokenizer.eos_id

    @property
    def max_length(self) -> int:
        """Tokens that the model takes at once."""
        return self.completer.config.seq_len

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text, behind end-of-text unless it is said otherwise."""
        return [self.eot_token_id] * (add_special_tokens is not False) + self.completer.tokenizer.encode(string).tolist()

    @torch.inference_mode()
    def _loglikelihood_tokens(self, requests: Sequence[Pair], disable_tqdm: bool = False, **kwargs: Any) -> list[tuple[float, bool]]:
        """For each request the sum of its tokens' log-probabilities, and whether each of them is the likeliest.

        A context that is too long loses its beginning.
        """
        sharing: dict[tuple[int, ...], list[int]] = {}
        for place, (_, context, scored) in enumerate(requests):
            require(0 < len(scored) <= self.max_length, f"{len(scored)} tokens to score", f"1 to {self.max_length}", "shorten the text")
            sharing.setdefault(tuple((context + scored)[-self.max_length - 1 : -1]), []).append(place)
        inputs = sorted(sharing, key=len, reverse=True)  # what is too much for the memory is so at once
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        with tqdm(total=len(requests), desc="log-likelihoods", disable=disable_tqdm) as bar:
            for first in range(0, len(inputs), self.batch_size):
                batch = inputs[first : first + self.batch_size]
                for ids, x_TD in zip(batch, self._hidden(batch), strict=True):
                    for place in sharing[ids]:
                        results[place] = self._scored(x_TD[: len(ids)], requests[place][2])
                        texts, *_ = requests[place]
                        if texts is not None:  # a window of a longer text has none
                            self.cache_hook.add_partial("loglikelihood", texts, results[place])
                    bar.update(len(sharing[ids]))
        return results

    def _hidden(self, batch: list[tuple[int, ...]]) -> Tensor:
        longest = max(map(len, batch))
        ids_BT = torch.tensor([ids + (0,) * (longest - len(ids)) for ids in batch], device=self._device)
        return self.completer.model.hidden(ids_BT)

    def _scored(self, x_TD: Tensor, scored: list[int]) -> tuple[float, bool]:
        """Only the positions that predict what is scored get logits: a vocabulary is wide."""
        log_p_TV = self.completer.model.logits(x_TD[-len(scored) :]).float().log_softmax(-1)
        ids_T = torch.tensor(scored, device=self._device)
        return float(log_p_TV.gather(1, ids_T[:, None]).sum()), bool((log_p_TV.argmax(-1) == ids_T).all())

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, each token predicted once, in windows as wide as the model."""
        owners, windows = [], []
        for owner, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
                owners.append(owner)
                windows.append((None, *make_disjoint_window(window)))
        totals = [0.0] * len(requests)
        for owner, (log_p, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[owner] += log_p
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Completions, each cut at the first of its stop strings; greedy unless the task says to sample."""
        groups: dict[Sampling, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(self._sampling(request.args[1]), []).append(place)
        results = [""] * len(requests)
        for sampling, places in groups.items():
            stops = [_stops(requests[place].args[1]) for place in places]
            prompts = [requests[place].args[0] for place in places]
            texts = self.completer.complete(prompts, sampling, stops=stops, seeds=[self.seed + place for place in places])
            for place, text, stop in zip(places, texts, stops, strict=True):
                results[place] = truncate(text, stop)
                self.cache_hook.add_partial("generate_until", requests[place].args, results[place])
        return results

    def _sampling(self, options: dict[str, Any]) -> Sampling:
        unknown = sorted(set(options) - set(OPTIONS) - ({"num_beams"} if options.get("num_beams") == 1 else set()))
        require(not unknown, f"generation option {', '.join(unknown)}", f"some of {', '.join(OPTIONS)}", "leave it out of the task")
        drawn = options.get("do_sample")
        temperature = 0.0 if drawn is False else float(options.get("temperature", 1.0 if drawn else 0.0))
        new = int(options.get("max_gen_toks") or options.get("max_new_tokens") or MAX_GEN_TOKS)
        return Sampling(new, temperature, float(options.get("top_p", 1.0)), self.batch_size)


def _stops(options: dict[str, Any]) -> tuple[str, ...]:
    until = options.get("until") or []
    return tuple(filter(None, [until] if isinstance(until, str) else until))
