"""task=contamination: whether the rows that the configured stages train on hold problems of the benchmarks in data.decontaminate.against.

The surprise: what is found is an error, status 2 with one line behind the table, since a check that passes whatever it finds guards nothing
and a user can mend it: prepare again with data.decontaminate.action=drop.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from typing import Any

from crystal.config import Config, require
from crystal.data.contamination import Check, Stretch, stretches
from crystal.data.shards import Prepared
from crystal.runlog import read_json, write_text
from stages.loading import loader_of
from stages.out import new_out
from stages.recipes import recipe
from stages.tasks import decontaminator_of, instantiated


def contamination(config: Config) -> None:
    """Print a table of parts, documents and hits by benchmark; each hit goes to out=. UserError where there are any."""
    out = None if config.out is None else new_out(config, "file")
    decontaminator = decontaminator_of(config.data)
    got = f"data={config.data.name} without data.decontaminate.against"
    require(decontaminator is not None, got, "benchmarks to look for", "give some, as conf/data/crystalcoder.yaml does")
    assert decontaminator is not None
    prepared = Prepared.open(config.data.out, verify=False)
    work = _trained_on(config, prepared)
    names = [problem.name for problem in decontaminator.problems]
    n_rows = sum(stretch.end - stretch.first for stretch in work)
    if config.dry_run:
        print(f"would look for {len(names):,} problems in {n_rows:,} rows of {prepared.folder}, in {len(work):,} pieces of work")
        return
    identity = [decontaminator.identity(), prepared.fingerprint(), work]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]
    folder = prepared.folder.with_name(f".{prepared.folder.name}.{key}.check")
    check, logs = Check(prepared.folder, work, decontaminator, folder), folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    instantiated(config.executor, "executor").run(check, len(work), logs / f"{len(list(logs.glob('*'))):03d}")
    results = [read_json(check.path(number), {}) for number in range(len(work))]
    hits = [hit for result in results for hit in result["hits"]]
    _show(work, results, list(dict.fromkeys(_benchmark(name) for name in names)))
    if out is not None:
        write_text(out, "".join(json.dumps(hit, ensure_ascii=False) + "\n" for hit in hits))
    shutil.rmtree(folder)
    n_documents = len({(hit["part"], hit["file"], hit["place"]) for hit in hits})
    got = f"{n_documents:,} documents of {prepared.folder} hold {len({hit['problem'] for hit in hits}):,} of {len(names):,} problems"
    remedy = "prepare with data.decontaminate.action=drop into another data.out" + ("" if out else "; out=FILE.jsonl lists them")
    require(not hits, got, "none", remedy)
    print(f"none of {len(names):,} problems in {n_rows:,} rows of {prepared.folder}")


def _trained_on(config: Config, prepared: Prepared) -> list[Stretch]:
    loaders = [loader_of(config, prepared, recipe(stage, config.scale))[0] for stage in config.stages.values()]
    mixtures = [some for loader in loaders for some in (loader.entries, *(change.entries for change in loader.changes))]
    return stretches(prepared, [entry for some in mixtures for entry in some])


def _benchmark(problem: str) -> str:
    return problem.partition("/")[0]


def _show(work: list[Stretch], results: list[dict[str, Any]], benchmarks: list[str]) -> None:
    documents, hits = Counter[str](), Counter[tuple[str, str]]()
    for stretch, result in zip(work, results, strict=True):
        documents[stretch.part] += result["documents"]
        hits.update((stretch.part, _benchmark(hit["problem"])) for hit in result["hits"])
    width = max(map(len, documents), default=0)
    print(f"{'part':<{width}} {'documents':>13}" + "".join(f" {name:>10}" for name in benchmarks))
    for part, count in documents.items():
        print(f"{part:<{width}} {count:>13,}" + "".join(f" {hits[part, name]:>10,}" for name in benchmarks))
