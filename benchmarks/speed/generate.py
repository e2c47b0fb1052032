"""Generation beside transformers: the same weights complete the same prompts of HumanEval greedily, one at a time and 16 at once.

    python -m benchmarks.speed.generate data=DIR out=FILE.json [rounds=5] [tokens=64] [threads=N] [scratch=DIR]

DIR holds tokenizer/tokenizer.json. The models have the shapes of tiny and 40m and random weights. transformers runs both formats that
task=export writes: `crystalcoder`, the very same arithmetic in a file of ours, and `hf`, a stock StableLM that is a head wider. The
surprise: random models end no text, so for one of the two measurements every ENDING-th id counts as the end of a text. Where texts end at
different places a batch of transformers waits for its longest; ours takes the next prompt instead.
"""

from __future__ import annotations

import importlib
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.code.problems import HumanEval
from benchmarks.speed.record import options, provenance, write_result
from crystal import checkpoint
from crystal.__main__ import complain
from crystal.config import ModelConfig, Sampling, UserError
from crystal.data.optional import need
from crystal.data.tokenizer import load_tokenizer
from crystal.generate import Completer, generate
from crystal.machine import usable_cores
from crystal.release.hf import export_crystalcoder, export_stock
from crystal.release.layout import crystal_shapes

SHAPES = {"tiny": (256, 4), "40m": (512, 6)}  # d_model, layers
VOCAB, SEQ_LEN, ENDING = 32032, 1024, 61
PROMPTS = {1: 8, 16: 48}  # by batch size
OURS = "crystal"
EXPORTS = {"crystalcoder": export_crystalcoder, "hf": export_stock}
Texts = list[list[int]]
Complete = Callable[[Texts, int, int, bool], Texts]  # prompts, batch size, new tokens, whether texts end -> new ids


def write_random(folder: Path, config: ModelConfig, tokenizer: Path) -> None:
    """A checkpoint whose activations are of order 1; initial weights would repeat the prompt's last token for ever."""
    weights, generator = {}, torch.Generator().manual_seed(0)
    for name, shape in crystal_shapes(config).items():
        std = 0.07 if name == "embed.weight" else shape[-1] ** -0.5 if len(shape) == 2 else 0.2
        weights[name] = std * torch.randn(shape, generator=generator) + ("norm" in name and name.endswith("weight"))
    with checkpoint.whole(folder) as made:
        checkpoint.write_tensors(made / "weights.pt", weights)
        checkpoint.seal(made, {"step": 0, "weights_only": True, "model": asdict(config)}, tokenizer=tokenizer)


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
    def complete(prompts: Texts, batch_size: int, n: int, ending: bool) -> Texts:
        return generate(
            completer.model, completer.config, prompts, Sampling(n, 0.0, 1.0, batch_size), seeds=[0] * len(prompts), eos_id=-1,
            done=lambda i, ids: ending and ids[-1] % ENDING == 0,
        )  # fmt: skip

    return complete


def _theirs(model: Any) -> Complete:
    ends, pad = [*range(0, VOCAB, ENDING)], 3

    @torch.no_grad()
    def complete(prompts: Texts, batch_size: int, n: int, ending: bool) -> Texts:
        new: Texts = []
        for first in range(0, len(prompts), batch_size):
            batch = prompts[first : first + batch_size]
            longest = max(map(len, batch))
            ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in batch])
            seen = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch])
            eos = ends if ending else VOCAB + 1  # one that never comes; None would take the export's own
            out = model.generate(ids, attention_mask=seen, max_new_tokens=n, do_sample=False, pad_token_id=pad, eos_token_id=eos)
            new += [_ended(row, ending) for row in out[:, longest:].tolist()]
        return new

    return complete


def _ended(row: list[int], ending: bool) -> list[int]:
    """Up to the first end, which stays; padding follows it."""
    return row[: next((k + 1 for k, token in enumerate(row) if ending and token % ENDING == 0), len(row))]


def compared(found: dict[str, Complete], prompts: Texts, batch_size: int, n: int, ending: bool, rounds: int) -> dict[str, Any]:
    """Interleaved: every peer once a round, each round beginning with another one; the first round warms up."""
    names, seconds = list(found), {name: [] for name in found}
    texts: dict[str, Texts] = {}
    for k in range(rounds + 1):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            start_s = time.perf_counter()
            texts[name] = found[name](prompts, batch_size, n, ending)
            if k:
                seconds[name].append(time.perf_counter() - start_s)
    tokens = sum(map(len, texts[OURS]))
    equal = {name: sum(a == b for a, b in zip(own, texts[OURS], strict=True)) for name, own in texts.items()}
    print(
        f"batch {batch_size}: {tokens} tokens, { ({name: round(median(s), 2) for name, s in seconds.items()}) }, {equal}", file=sys.stderr
    )
    return {"batch": batch_size, "ending": ending, "texts": len(prompts), "tokens": tokens, "seconds": seconds, "equal": equal}


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        f"Float32 on {result['threads']} threads, random weights, greedy, at most {result['new_tokens']} new tokens a text, the prompts' "
        f"passes included; {result['rounds']} interleaved rounds, medians (lowest to highest). `crystal is`: the median over rounds of "
        f"the peer's seconds over crystal's. `texts end`: at every {ENDING}th id.\n",
        "| model | batch | texts end | | seconds | new tokens/s | crystal is | equal texts |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in result["cases"]:
        for name, own in case["seconds"].items():
            ratio = median(peer / ours for peer, ours in zip(own, case["seconds"][OURS], strict=True))
            lines.append(
                f"| {case['model']} | {case['batch']} | {'yes' if case['ending'] else 'no'} | {name} | {median(own):.2f} ({min(own):.2f} to "
                f"{max(own):.2f}) | {case['tokens'] / median(own):.0f} | {f'{ratio:.2f}x as fast' if name != OURS else ''} | "
                f"{case['equal'][name]} of {case['texts']} |"
            )
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    given = options(arguments, {"data": None, "out": None, "rounds": 5, "tokens": 64, "threads": usable_cores(), "scratch": ""})
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
                for ending in (False, True):
                    case = compared(found, prompts, batch_size, given["tokens"], ending, given["rounds"])
                    cases.append({"model": model} | case)
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
