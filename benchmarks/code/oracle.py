"""Whether an answer is evalplus's expected one. This text goes into the check of a HumanEval+ or MBPP+ problem and runs in the judge.

Standard library only. The surprise: expected values are not stored; the reference solution computes them beside the program, on copies of
the same inputs. evalplus keeps a tolerance that one float has brought up for all later inputs of its problem; here each input has its own.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

FLOAT_ATOL, RTOL = 1e-6, 1e-7  # evalplus's, where the expected value is of floats; numpy.testing.assert_allclose's
NOT_NONE = {"check_str", "text_match_three", "text_starta_endb"}  # MBPP+: a match object will do
AS_SETS = {
    "similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly", "larg_nnum", "intersection_array",
    "find_dissimilar", "Diff",
}  # fmt: skip


def check_all(dataset: str, entry_point: str, solve: Callable, reference: Callable, inputs: list[Any], atol: float) -> None:
    """Raise AssertionError at the first of `inputs` (lists of arguments) where `solve` does not agree with `reference`."""
    for arguments in inputs:
        expected = reference(*copy.deepcopy(arguments))
        got = solve(*copy.deepcopy(arguments))
        if not agrees(dataset, entry_point, arguments, got, expected, atol):
            shown = f"{entry_point}({', '.join(map(repr, arguments))}) is {got!r}"
            raise AssertionError(shown if len(shown) < 300 else f"{entry_point} of {len(repr(arguments))} characters of arguments")


def agrees(dataset: str, entry_point: str, arguments: list[Any], got: Any, expected: Any, atol: float) -> bool:
    """evalplus's rules, its special cases for some entry points first."""
    if dataset == "humaneval" and entry_point == "find_zero":  # any root will do
        return abs(sum(c * math.pow(got, i) for i, c in enumerate(arguments[0]))) <= atol
    if dataset == "mbpp":
        if entry_point in AS_SETS:
            return set(got) == set(expected)
        if entry_point in NOT_NONE:
            return (got if isinstance(got, bool) else got is not None) == (expected is not None)
        if accepted_besides(entry_point, arguments, got, atol):
            return True
    if got == expected:
        return True
    atol = atol or (FLOAT_ATOL if is_floats(expected) else 0)
    return atol != 0 and type(got) is type(expected) and close(got, expected, atol)


def accepted_besides(entry_point: str, arguments: list[Any], got: Any, atol: float) -> bool:
    """Answers that MBPP+ accepts beside the reference's, where a task's text leaves it open."""
    if entry_point == "are_equivalent":  # 164: "sum of divisors" of what?
        return True
    if entry_point == "sum_div":  # 295: proper divisors or all
        return bool(got == 0)
    if entry_point == "surface_Area":  # 581: height of the pyramid, not of its side
        base, height = arguments
        return abs(got - round(base**2 + 2 * base * math.sqrt((base / 2) ** 2 + height**2))) <= atol
    if entry_point == "digit_distance_nums":  # 558: the shorter number is filled up with zeros
        one, other = map(str, arguments)
        length = max(len(one), len(other))
        return bool(got == sum(abs(int(a) - int(b)) for a, b in zip(one.zfill(length), other.zfill(length), strict=True)))
    return False


def is_floats(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(one, float) for one in value)
    return isinstance(value, float)


def close(got: Any, expected: Any, atol: float) -> bool:
    """numpy.allclose for numbers and nested lists of them, of the same shape; false for all else."""
    if isinstance(expected, list | tuple):
        alike = isinstance(got, list | tuple) and len(got) == len(expected)
        return alike and all(close(one, other, atol) for one, other in zip(got, expected, strict=True))
    if not isinstance(got, int | float | complex) or not isinstance(expected, int | float | complex):
        return False
    return bool(got == expected or (math.isfinite(abs(expected)) and abs(got - expected) <= atol + RTOL * abs(expected)))


def tuples(value: Any, depth: int) -> Any:
    """Lists as tuples `depth` levels down, and only there: 1 is the arguments themselves, 2 what they hold, 3 what that holds."""
    if depth == 0:
        return tuple(value) if isinstance(value, list) else value
    return [tuples(one, depth - 1) for one in value] if isinstance(value, list) else value


def all_tuples(value: Any) -> Any:
    return tuple(map(all_tuples, value)) if isinstance(value, list) else value


BOTH = {2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630, 726, 740, 744, 809}
INSIDE = {63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780}
INSIDE_FIRST = {75, 413, 444, 753}
FIRST = {250, 405, 446, 617, 720, 763, 808, 307}
SECOND = {106, 750}
DEEP = {259, 401, 445}
EVERYTHING = {580, 615, 791}


def restored(task: int, arguments: list[Any]) -> list[Any]:
    """The arguments of one MBPP+ call, which JSON holds as lists, with the tuples, sets and complex numbers that the task asks for."""
    first, *others = arguments
    if task in BOTH:
        return [tuple(one) for one in arguments]
    if task in INSIDE:
        return [tuples(one, 1) for one in arguments]
    if task in INSIDE_FIRST:
        return [tuples(first, 1), *others]
    if task in FIRST:
        return [tuple(first), *others]
    if task in SECOND:
        return [first, tuple(others[0]), *others[1:]]
    if task in DEEP:
        return [tuple(tuples(one, 1)) for one in arguments]
    if task in EVERYTHING:
        return [all_tuples(one) for one in arguments]
    if task == 115:
        return [[set(one) if isinstance(one, list) and one else {} for one in first]]
    if task == 124:
        return [float(first), complex(others[0])]
    if task == 252:
        return [complex(first)]
    if task == 278:
        return [tuple(tuples(first, 1))]
    if task == 722:
        return [{name: tuple(value) for name, value in first.items()}, *others]
    return arguments
