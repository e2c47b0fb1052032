"""How a problem is put to a model and how its answer is cut, as the harnesses do it; the protocols themselves are `conf/eval/protocol/`.

The surprise: what a protocol does to a HumanEval prompt (white space at its end) also changes the program, for that begins with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.code.problems import Benchmark, Problem
from crystal.config import UserError, require
from crystal.evalconfig import Asking, ProtocolConfig


def asked(benchmark: Benchmark, protocol: ProtocolConfig) -> tuple[Asking, list[Problem]]:
    """The benchmark's problems as the protocol puts them. Raises as `Benchmark.problems`, and UserError for what does not go together."""
    asking = protocol.asking(benchmark.kind, benchmark.name)
    examples = benchmark.examples()[: asking.shots] if asking.shots else []
    got, expected = f"eval/protocol={protocol.name} with the benchmark {benchmark.name}", "one that has what the protocol shows"
    require(len(examples) == asking.shots, got, expected, "take another eval/protocol")
    if asking.truncation == "sanitize":
        sanitizer()  # asked for before anything is generated
    problems = [_put(problem, asking, examples) for problem in benchmark.problems()]
    return asking, problems


def _put(problem: Problem, asking: Asking, examples: Sequence[Problem]) -> Problem:
    prompt = problem.prompt
    if asking.prompt == "few_shot":
        prompt = few_shot(problem, examples)
    elif asking.prompt in ("stripped", "stripped_newline"):
        prompt = prompt.strip() + ("\n" if asking.prompt == "stripped_newline" else "")
    # A preamble is the prompt that the program goes on from, or nothing; sanitized text brings its own.
    preamble = "" if asking.truncation == "sanitize" or not problem.preamble else prompt
    return replace(problem, prompt=prompt, preamble=preamble, stops=tuple(asking.stops), alone=asking.alone)


def few_shot(problem: Problem, examples: Sequence[Problem]) -> str:
    """MBPP's prompt of lm-eval: text, three tests and [BEGIN], the worked examples before it, each up to [DONE]."""

    def question(one: Problem) -> str:
        shown = "\n".join(one.tests[:3])
        return (
            f"You are an expert Python programmer, and here is your task: {one.statement} Your code should pass these tests:\n\n"
            f"{shown}\n[BEGIN]\n"
        )

    return "".join(f"{question(one)}{one.canonical}\n[DONE]\n\n" for one in examples) + question(problem)


def truncate(completion: str, stops: Sequence[str]) -> str:
    """`completion` up to the first occurrence of any of `stops`."""
    return completion[: min((at for text in stops if (at := completion.find(text)) >= 0), default=len(completion))]


def finished(problem: Problem, text: str, asking: Asking) -> str:
    """The completion to judge: `text` as the model wrote it, cut as the protocol says."""
    if asking.truncation == "none":
        return text
    text = truncate(text, problem.stops)
    if asking.truncation == "sanitize":
        return str(sanitizer()(problem.prompt + text.replace("\t", "    "), entrypoint=problem.entry_point))
    return text


def sanitizer():  # type: ignore[no-untyped-def]
    """evalplus's own `sanitize(code, entrypoint)`."""
    try:
        from evalplus.sanitize import sanitize
    except ImportError as error:
        raise UserError(
            f"a protocol with truncation=sanitize, but the package evalplus cannot be imported ({error}); its sanitizer comes from "
            "there; pip install evalplus, or take another eval/protocol"
        ) from error
    return sanitize
