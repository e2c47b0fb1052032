"""Generation beside transformers: the same weights complete the same prompts of HumanEval greedily, one at a time and 16 at once.

    python -m benchmarks.speed.generate data=DIR out=FILE.json [rounds=5] [tokens=128] [threads=N] [scratch=DIR]

DIR holds tokenizer/tokenizer.json. The models have the shapes of tiny and 40m and random weights. transformers runs both formats that
task=export writes: `crystalcoder`, the very same arithmetic in a file of ours, and `hf`, a stock StableLM that is a head wider. The
surprise: random models end no text, so in one of the two measurements it is said beforehand where each one ends. There a batch of
transformers waits for its longest text; ours takes the next prompt instead.
"""

from __future__ import annotations

import importlib
import os
import random
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.checkpoints import write_random
from benchmarks.code.problems import HumanEval
from benchmarks.record import options, provenance, write_result
from crystal.__main__ import complain
from crystal.config import ModelConfig, Sampling, UserError
from crystal.data.optional import need
from crystal.data.tokenizer import load_tokenizer
from crystal.generate import Completer, generate
from crystal.machine import usable_cores
from crystal.model.decode import decoder
from crystal.release.hf import export_crystalcoder, export_stock

SHAPES = {"tiny": (256, 4), "40m": (512, 6)}  # d_model, layers
VOCAB, SEQ_LEN = 32032, 1024
PROMPTS = {1: 4, 16: 48}  # by batch size
OURS = "crystal"
EXPORTS = {"crystalcoder": export_crystalcoder, "hf": export_stock}
Texts = list[list[int]]
Complete = Callable[[Texts, int, list[int]], Texts]  # prompts, batch size, how many new tokens each text has -> new ids


def transformers() -> Any:
    """Its module. mup brings torchvision, perhaps of another build of torch, over which it would fall."""
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        sys.modules["torchvision"] = None  # type: ignore[assignment]  # as if it were not installed
    return need("transformers", extra="hf")


def peers(folder: Path, config: ModelConfig, tokenizer: Path) -> dict[str, Complete]:
    write_random(folder / "checkpoint", config, tokenizer)
    found = {OURS: _ours(Completer.load(folder / "checkpoint", device="cpu"))}
    for name, export in EXPORTS.items():
        export(folder / "checkpoint", folder / name, dtype="float32")
        model = (
            transformers()
            .AutoModelForCausalLM.from_pretrained(folder / name, trust_remote_code=name == "crystalcoder", dtype=torch.float32)
            .eval()
        )
        found[f"transformers, format={name}"] = _theirs(model)
    return found


def _ours(completer: Completer) -> Complete:
    steps = decoder(completer.model, completer.config)

    def complete(prompts: Texts, batch_size: int, lengths: list[int]) -> Texts:
        sampling = Sampling(max(lengths), 0.0, 1.0, batch_size)
        return generate(steps, prompts, sampling, seeds=[0] * len(prompts), eos_id=-1, done=lambda i, ids: len(ids) == lengths[i])

    return complete


def _theirs(model: Any) -> Complete:
    pad = 3

    @torch.no_grad()
    def complete(prompts: Texts, batch_size: int, lengths: list[int]) -> Texts:
        new: Texts = []
        for first in range(0, len(prompts), batch_size):
            batch, ends = prompts[first : first + batch_size], torch.tensor(lengths[first : first + batch_size])
            longest = max(map(len, batch))
            out = model.generate(
                torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in batch]),
                attention_mask=torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch]),
                max_new_tokens=int(ends.max()), do_sample=False, pad_token_id=pad, eos_token_id=VOCAB + 1,  # one that never comes
                stopping_criteria=[partial(_ended, ends + longest)],
            )  # fmt: skip
            new += [row[longest : longest + n] for row, n in zip(out.tolist(), ends.tolist(), strict=True)]
        return new

    return complete


def _ended(ends: torch.Tensor, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
    return ends <= ids.shape[1]


def compared(found: dict[str, Complete], prompts: Texts, batch_size: int, lengths: list[int], rounds: int) -> dict[str, Any]:
    """Interleaved: every peer once a round, each round beginning with another one; the first round warms up."""
    names = list(found)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    texts: dict[str, Texts] = {}
    for k in range(rounds + 1):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            start_s = time.perf_counter()
            texts[name] = found[name](prompts, batch_size, lengths)
            if k:
                seconds[name].append(time.perf_counter() - start_s)
    tokens = sum(map(len, texts[OURS]))
    equal = {name: sum(a == b for a, b in zip(own, texts[OURS], strict=True)) for name, own in texts.items()}
    print(
        f"batch {batch_size}: {tokens} tokens, { ({name: round(median(s), 2) for name, s in seconds.items()}) }, {equal}", file=sys.stderr
    )
    return {"batch": batch_size, "ending": min(lengths) < max(lengths), "tokens": tokens, "seconds": seconds, "equal": equal}


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        f"Float32 on {result['threads']} threads, random weights, greedy, at most {result['new_tokens']} new tokens a text, the prompts' "
        f"passes included; {result['rounds']} interleaved rounds, medians (lowest to highest). `crystal is`: the median over rounds of "
        f"the peer's seconds over crystal's. `texts end`: after 1 to {result['new_tokens']} tokens, or all after the last.\n",
        "| model | batch | texts end | | seconds | new tokens/s | crystal is | equal texts |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in result["cases"]:
        for name, own in case["seconds"].items():
            ratio = median(peer / ours for peer, ours in zip(own, case["seconds"][OURS], strict=True))
            cells = [case["model"], case["batch"], "anywhere" if case["ending"] else "together", name]
            cells += [f"{median(own):.2f} ({min(own):.2f} to {max(own):.2f})", f"{case['tokens'] / median(own):.0f}"]
            cells += ["" if name == OURS else f"{ratio:.2f}x as fast", f"{case['equal'][name]} of {PROMPTS[case['batch']]}"]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    given = options(arguments, {"data": None, "out": None, "rounds": 5, "tokens": 128, "threads": usable_cores(), "scratch": ""})
    shown = [one for one in arguments if not one.startswith(("scratch=", "data="))]
    result = provenance(shlex.join(["python", "-m", "benchmarks.speed.generate", *shown]), ["torch", "transformers"])
    torch.set_num_threads(given["threads"])
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    cases: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=given["scratch"] or None) as scratch:
        os.environ["HF_MODULES_CACHE"] = str(Path(scratch) / "modules")
        tokenizer = Path(given["data"]) / "tokenizer" / "tokenizer.json"
        for model, (d_model, n_layers) in SHAPES.items():
            config = ModelConfig(model, d_model, n_layers, d_model // 128, 8 * d_model // 3, VOCAB, SEQ_LEN)
            found = peers(Path(scratch) / model, config, tokenizer)
            for batch_size, n_prompts in PROMPTS.items():
                prompts = humaneval_ids(tokenizer, n_prompts)
                together = [given["tokens"]] * n_prompts
                anywhere = [1 + k * given["tokens"] // n_prompts for k in random.Random(0).sample(range(n_prompts), n_prompts)]
                for lengths in (together, anywhere):
                    cases.append({"model": model} | compared(found, prompts, batch_size, lengths, given["rounds"]))
    result |= {"rounds": given["rounds"], "new_tokens": given["tokens"], "threads": given["threads"], "cases": cases}
    write_result(Path(given["out"]), "Generation", result, page(result))


def humaneval_ids(tokenizer: Path, n: int) -> Texts:
    """Every so many-th prompt, shortest first, which spares a batch of transformers padding."""
    encoder = load_tokenizer(tokenizer)
    problems = HumanEval().problems()
    ids = [[encoder.eos_id, *encoder.encode(problem.prompt).tolist()] for problem in problems[:: len(problems) // n][:n]]
    return sorted(ids, key=len)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(complain(str(error)))
