"""Checkpoints to compare tools with: of random weights, and one that knows problems of HumanEval and MBPP by heart, every third one wrong.

    python -m benchmarks.checkpoints tokenizer=DIR mbpp=FILE out=DIR [problems=10] [minutes=15]

A weak model fails everywhere, and harnesses agree on that whatever they do. This one learns what to answer to the prompts of each protocol
that `benchmarks.harnesses` compares, until it makes no mistake any more or the time is up. DIR holds a tokenizer.json.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch.nn import functional as F

from benchmarks.code.problems import HumanEval, Mbpp
from benchmarks.code.protocols import asked
from benchmarks.harnesses import protocol_of
from benchmarks.record import options
from crystal import checkpoint
from crystal.__main__ import complain
from crystal.config import ModelConfig, UserError, require
from crystal.data.tokenizer import Tokenizer, load_tokenizer
from crystal.generate import Completer
from crystal.machine import usable_cores
from crystal.release.layout import crystal_shapes

PROTOCOLS = "lm_eval", "bigcode"
ENDS = {"lm_eval": "\n[DONE]", "bigcode": "\nprint"}  # stops of MBPP there; HumanEval's are the same in both
WRONG = "    return 'wrong'\n"
SEQ_LEN, BATCH, LEARNT = 2048, 8, 0.003  # nats a token, at which greedy answers have been right


def write_random(folder: Path, config: ModelConfig, tokenizer: Path) -> None:
    """A checkpoint whose activations are of order 1; initial weights would repeat the prompt's last token for ever."""
    weights, generator = {}, torch.Generator().manual_seed(0)
    for name, shape in crystal_shapes(config).items():
        std = 0.07 if name == "embed.weight" else shape[-1] ** -0.5 if len(shape) == 2 else 0.2
        weights[name] = std * torch.randn(shape, generator=generator) + ("norm" in name and name.endswith("weight"))
    write(folder, weights, config, tokenizer)


def write(folder: Path, weights: Mapping[str, torch.Tensor], config: ModelConfig, tokenizer: Path) -> None:
    """A checkpoint of these weights, whole or not at all."""
    with checkpoint.whole(folder) as made:
        checkpoint.write_tensors(made / "weights.pt", weights)
        checkpoint.seal(made, {"step": 0, "weights_only": True, "model": asdict(config)}, tokenizer=tokenizer)


def lessons(tokenizer: Tokenizer, mbpp: str, n: int) -> list[tuple[list[int], int]]:
    """Token ids of a prompt with its answer, and how many of them are the prompt's."""
    found = []
    for protocol in PROTOCOLS:
        for benchmark in (HumanEval(limit=n), Mbpp(mbpp, limit=n)):
            for number, problem in enumerate(asked(benchmark, protocol_of(protocol))[1]):
                answer = problem.canonical.replace("\r\n", "\n").rstrip()
                if number % 3 == 2:
                    answer = WRONG if benchmark.name == "humaneval" else answer.replace("return", "return 1 +")
                end = "\nprint" if benchmark.name == "humaneval" else ENDS[protocol]
                prompt = [tokenizer.eos_id, *tokenizer.encode(problem.prompt).tolist()]
                text = tokenizer.encode(problem.prompt + "\n" * (problem.prompt[-1] != "\n") + answer + end).tolist()
                found.append(([tokenizer.eos_id, *text, tokenizer.eos_id], len(prompt)))
    require(max(len(ids) for ids, _ in found) <= SEQ_LEN, "a prompt with its answer", f"at most {SEQ_LEN} tokens", "ask for fewer problems")
    return found


def learn(folder: Path, taught: list[tuple[list[int], int]], seconds: float) -> tuple[Completer, float]:
    """The model in `folder`, trained on the answers, and its last loss, nats a token."""
    completer, began, n_steps = Completer.load(folder, device="cpu"), time.monotonic(), 0
    model = completer.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    taught = sorted(taught, key=lambda lesson: len(lesson[0]))
    batches = [taught[i : i + BATCH] for i in range(0, len(taught), BATCH)]
    while True:
        losses = []
        for batch in batches:
            longest = max(len(ids) for ids, _ in batch)
            ids_BT = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in batch])
            places_T = torch.arange(1, longest)
            mask_BT = torch.stack([(places_T >= first) & (places_T < len(ids)) for ids, first in batch])
            x_ND = model.hidden(ids_BT[:, :-1])[mask_BT]  # of the answers only, which spares most of the logits
            loss = F.cross_entropy(model.logits(x_ND), ids_BT[:, 1:][mask_BT])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, (n_steps + 1) / 50, (1.1 - (time.monotonic() - began) / seconds))
            optimizer.step()
            losses.append(loss.item())
            n_steps += 1
            if time.monotonic() - began > seconds:
                return completer, max(losses)
        print(f"\rstep {n_steps}, {max(losses):.4f} nats a token", end="", file=sys.stderr)
        if max(losses) < LEARNT:
            return completer, max(losses)


def main(arguments: list[str]) -> None:
    given = options(arguments, {"tokenizer": None, "mbpp": None, "out": None, "problems": 10, "minutes": 15})
    torch.manual_seed(0)
    torch.set_num_threads(usable_cores())
    tokenizer = Path(given["tokenizer"]) / "tokenizer.json"
    known = load_tokenizer(tokenizer)
    config = ModelConfig("memory", 256, 4, 4, 704, -(-known.n_ids // 32) * 32, SEQ_LEN)
    taught = lessons(known, given["mbpp"], given["problems"])
    with tempfile.TemporaryDirectory(prefix="crystal-") as scratch:
        write_random(Path(scratch) / "random", config, tokenizer)
        completer, loss = learn(Path(scratch) / "random", taught, 60 * given["minutes"])
    write(Path(given["out"]), completer.model.state_dict(), config, tokenizer)
    print(f"\n{given['out']}: {len(taught)} answers, {loss:.4f} nats a token")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(complain(str(error)))
