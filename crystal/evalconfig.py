"""How a benchmark's problems are put to a model and where its answers end: the protocols of `conf/eval/protocol/`, typed.

The surprise: a protocol has nothing to say on how an answer is judged. The same program passes or fails under all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from crystal.errors import require

PROMPTS = ("raw", "stripped", "stripped_newline", "few_shot", "infill")
TRUNCATIONS = ("stop", "none", "sanitize")


@dataclass
class Asking:
    """One kind of benchmark under one protocol.

    prompt: the published one "raw", "stripped" of white space at both ends, "stripped_newline" with a line end behind; "few_shot" as
    lm-eval asks MBPP, after `shots` worked examples; "infill" as prefix and suffix.
    stops: generation ends at the first of them. truncation: "stop" cuts the text there, "none" leaves it whole, "sanitize" cuts it and
    then keeps what evalplus's sanitizer keeps. alone: an answer is decoded without its prompt; LLaMA's tokenizer then loses a first space.
    """

    prompt: str
    stops: list[str]
    shots: int = 0
    truncation: str = "stop"
    alone: bool = False

    def __post_init__(self) -> None:
        for key, known in (("prompt", PROMPTS), ("truncation", TRUNCATIONS)):
            value = getattr(self, key)
            require(value in known, f"eval.protocol's {key}={value}", " or ".join(known), "mend it, or choose another eval/protocol")
        got = f"eval.protocol's shots={self.shots} with prompt={self.prompt}"
        require(self.shots in (0, 3), got, "0 or 3", "mend shots")
        require(self.shots == 0 or self.prompt == "few_shot", got, "examples with prompt=few_shot only", "mend shots or prompt")
        require("" not in self.stops, "an empty string in eval.protocol's stops", "texts that end an answer", "leave it out")


@dataclass
class ProtocolConfig:
    """One harness's way of asking; null for what it does not ask. source: repository@commit or version."""

    name: str
    source: str
    humaneval: Asking | None = None
    mbpp: Asking | None = None
    infill: Asking | None = None

    def asking(self, kind: str, benchmark: str) -> Asking:
        """How problems of `kind` ("humaneval", "mbpp", "infill") are asked. Raises UserError where this protocol does not ask them."""
        found: Asking | None = getattr(self, kind)
        require(
            found is not None,
            f"eval/protocol={self.name} with the benchmark {benchmark}",
            f"a protocol that says how {kind} is asked",
            "take another eval/protocol, or leave that benchmark out",
        )
        assert found is not None
        return found
