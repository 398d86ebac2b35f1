"""`sae-sweep features` and `sae-sweep probe` on a small sweep of the embedded model, and what docs/features.md shows of them."""

import json
import re
import shlex
import shutil

import pytest
import yaml
from browser import CHROMIUM, act
from documents import ROOT, blocks
from small_sweep import DEFINITION
from test_json import check
from tiny_model import documents, write_text
from typer.testing import CliRunner

import sweeps
from analysis import features, load_table
from sae_core.errors import ConfigError
from sweeps.cli import app


def call(*arguments):
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    return done.exit_code, json.loads(done.stdout)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two finished runs on text of a file, in results/demo, as docs/features.md calls it."""
    directory = tmp_path_factory.mktemp("learned")
    write_text(directory / "text.jsonl")
    sections = {
        "name": "demo",
        "model": {"name": "demo", "hook_point": "blocks.2.hook_resid_post", "context_size": 48},
        "data": {"dataset": str(directory / "text.jsonl"), "train_tokens": 2_000, "eval_tokens": 1_000},
        "sae": {"d_sae": 48},
        "train": {"batch_size": 128},
        "architectures": {"topk": {"k": 4}},
        "seeds": [0, 1],
    }
    definition = directory / "demo.yaml"
    definition.write_text(yaml.safe_dump(sections))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analysis.report.write_report", lambda *_: None)
        code, ran = call("run", definition, "--results", directory / "results", "--executor", "inline")
    assert code == 0, ran
    return directory / "results" / "demo"


@pytest.fixture(scope="module")
def run_ids(sweep):
    return sorted(path.name for path in (sweep / "runs").iterdir())


@pytest.fixture(scope="module")
def page(sweep, run_ids):
    code, data = call("features", sweep, run_ids[0], "--top", "5", "--compare", run_ids[1])
    assert (code, len(data["latents"])) == (0, 5), data
    check("features", data)
    return sweep / "runs" / run_ids[0] / "features.html"


def content(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1])


def test_the_page_is_one_file_that_loads_nothing(page):
    text = page.read_text()
    assert not re.findall(r"""(?:src|href)=["']|url\(|@import|https?://(?!www\.w3\.org/2000/svg)""", text.partition('<script type="app')[0])
    assert "fetch(" not in text and "innerHTML" not in text


def test_the_page_says_what_python_says(page, sweep, run_ids):
    run = sweeps.open_run(sweep, run_ids[0])
    shown = content(page)["latents"][0]
    assert shown["density"] == pytest.approx(features.latent_density(run)[shown["latent"]], rel=1e-3)
    (top,) = features.top_activating_examples(run, shown["latent"], 1)
    assert shown["examples"][0]["tokens"] == list(top.tokens) and shown["examples"][0]["value"] == pytest.approx(top.value, rel=1e-3)
    matches = features.match_latents(run, sweeps.open_run(sweep, run_ids[1]))
    assert shown["match"]["latent"] == matches.assigned[shown["latent"]]
    assert run.activations.counts.sum() / run.activations.n_tokens == pytest.approx(load_table(sweep).set_index("run_id")["l0"][run_ids[0]])


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_page_works_in_a_browser(page, tmp_path):
    by_effect = sorted(content(page)["latents"], key=lambda one: -one["ablation"]["kl"])
    latents = [one["latent"] for one in by_effect]
    copy = tmp_path / "page.html"
    shutil.copy(page, copy)
    seen = act(
        copy,
        f"""
        const seen = {{}}, title = () => document.querySelector("#latent h2").textContent, count = () => all("#list li").length;
        const search = (text) => {{ $("search").value = text; $("search").dispatchEvent(new Event("input")); }};
        seen.first = title(); seen.all = count();
        key("list", "ArrowDown"); seen.next = title();
        search("{latents[2]}"); seen.found = title(); seen.few = count();
        search("no such text"); seen.none = count();
        search(""); choose("sort", 5);
        seen.sorted = document.querySelector("#list .number").textContent;
        document.querySelector("#list li:last-child button").click(); seen.last = title();
        seen.examples = all(".example .here").length; seen.bars = all("svg rect").length;
        return seen;""",
    )
    assert (seen["first"], seen["next"]) == (f"Latent {latents[0]}", f"Latent {latents[1]}")
    assert (seen["all"], seen["found"], seen["none"]) == (5, f"Latent {latents[2]}", 0) and seen["few"] >= 1
    assert (seen["sorted"], seen["last"]) == (str(min(latents)), f"Latent {max(latents)}")
    assert seen["examples"] > 0 and seen["bars"] > 20


def test_the_cache_is_prepared_again_where_it_is_gone(sweep, run_ids, tmp_path, page):
    shutil.rmtree(sweep.parent / ".activations")
    assert call("features", sweep, run_ids[0], "--top", "5", "--compare", run_ids[1], "--out", tmp_path / "again.html")[0] == 0
    assert (tmp_path / "again.html").read_text() == page.read_text()


def test_another_sae_is_compared_by_its_directory(sweep, run_ids, tmp_path):
    other = sweep / "runs" / run_ids[1] / "sae"
    assert (
        call("features", sweep, run_ids[0], "--latent", "3", "--latent", "4", "--compare", other, "--out", tmp_path / "page.html")[0] == 0
    )
    shown = content(tmp_path / "page.html")
    assert ([one["latent"] for one in shown["latents"]], shown["other"]["run_id"]) == ([3, 4], str(other))


def test_exports_are_written(sweep, run_ids, tmp_path):
    for layout, file in (("delphi", "config.json"), ("neuronpedia", "source.jsonl")):
        code, data = call("features", sweep, run_ids[0], "--export", layout, "--to", tmp_path / layout)
        assert (code, data["page"]) == (0, None), data
        assert (tmp_path / layout / file).exists() or list((tmp_path / layout).rglob(file))


def test_what_cannot_be_shown_is_one_message(sweep, run_ids, tmp_path, monkeypatch):
    run_id = run_ids[0]
    monkeypatch.setattr("analysis.features.run.collect", None)  # all of it is seen before work begins
    copy = tmp_path / "demo"
    shutil.copytree(sweep, copy)
    shutil.rmtree(copy / "runs" / run_ids[1] / "sae")
    for arguments, part in (
        ([sweep, run_id[:-1]], f"run id must be one of .*Did you mean '{run_id}'"),
        ([tmp_path / "nothing", run_id], "must hold `runs/` or `sweep.json`"),
        ([copy, run_ids[1]], "must have its exported SAE"),
        ([sweep, run_id, "--latent", "48"], "got 48 and d_sae=48"),
        ([sweep, run_id, "--latent", "1", "--top", "2"], "must not be given together"),
        ([sweep, run_id, "--export", "delphi"], "must be given together"),
        ([sweep, run_id, "--compare", "nothing"], "run id must be one of"),
        ([sweep, run_id, "--out", "/dev/null/page.html"], "`--out` must name a file .*'/dev/null/page.html'.*Choose another"),
        ([sweep, run_id, "--out", sweep], "`--out` must name a file .*it is a directory"),
        ([sweep, run_id, "--export", "delphi", "--to", "/dev/null/to"], "`--to` must name a directory .*'/dev/null/to'"),
    ):
        code, data = call("features", *arguments)
        assert code == 2 and re.search(part, data["error"]["message"], re.DOTALL), data


def test_changed_or_missing_text_is_one_message(sweep, run_ids):
    text = sweep.parents[1] / "text.jsonl"
    before = text.read_text()
    try:
        text.write_text(before.replace("return", "yield"))
        with pytest.raises(ConfigError, match="files have changed under the same names"):
            sweeps.open_run(sweep, run_ids[0])
        text.unlink()
        code, data = call("features", sweep, run_ids[0])
        assert code == 2 and "text.jsonl" in data["error"]["message"]
    finally:
        text.write_text(before)


def test_without_a_language_model_what_applies_is_shown(tmp_path, monkeypatch):
    definition = tmp_path / "small.yaml"
    definition.write_text(yaml.safe_dump({**DEFINITION, "architectures": {"topk": {"k": 2}}}))
    monkeypatch.setattr("analysis.report.write_report", lambda *_: None)
    call("run", definition, "--results", tmp_path, "--executor", "inline")
    (run,) = (tmp_path / "small" / "runs").iterdir()
    assert call("features", tmp_path / "small", run.name, "--top", "3")[0] == 0
    shown = content(run / "features.html")
    assert shown["n_tokens"] == 6_000 and shown["latents"][0]["examples"][0]["window"] >= 0
    for command in (["features", "--export", "delphi", "--to", str(tmp_path / "out")], ["probe", "--data", str(labeled(tmp_path))]):
        name, *options = command
        arguments = [name, tmp_path / "small", *([run.name] if name == "features" else []), *options]
        code, data = call(*arguments)
        assert code == 2 and "source 'synthetic'" in data["error"]["message"], data


def labeled(directory):
    """A file of pieces of code, labeled by what they multiply with."""
    rows = [{"text": text[: 90 + 7 * number], "label": "even" if number % 2 else "odd"} for number, text in enumerate(documents(60))]
    file = directory / "labeled.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


def test_probes_are_columns(sweep, tmp_path):
    pytest.importorskip("sklearn")
    code, data = call("probe", sweep, "--data", labeled(tmp_path), "--k", "1,3")
    assert code == 0, data
    check("probe", data)
    table = load_table(sweep).set_index("run_id")
    for run in data["runs"]:
        assert table["probe_labeled_k1"][run["run_id"]] == run["accuracy"]["1"]
    assert call("probe", sweep, "--data", labeled(tmp_path), "--k", "2")[1]["activations"] == data["activations"]
    assert {"probe_labeled_k1", "probe_labeled_k2", "probe_labeled_k3"} <= set(load_table(sweep).columns)


def test_wrong_questions_to_probe_are_one_message(sweep, tmp_path):
    for options, part in (
        (["--data", tmp_path / "nothing.csv"], "nothing.csv"),
        (["--data", labeled(tmp_path), "--k", "1,x"], "'1,x'"),
        (["--data", labeled(tmp_path), "--label-column", "kind"], "'kind'"),
    ):
        code, data = call("probe", sweep, *options)
        assert code == 2 and part in data["error"]["message"], data


def shown_commands():
    lines = [line for text in blocks(ROOT / "docs" / "features.md", "bash") for line in text.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("sae-sweep")]


@pytest.mark.parametrize("words", shown_commands(), ids=" ".join)
def test_the_commands_of_the_docs_run(sweep, run_ids, words, monkeypatch):
    if "probe" in words:
        pytest.importorskip("sklearn")
    directory = sweep.parents[1]
    stars = "\n".join(f'"It is item {row} of the list, and it is {"good" if row % 2 else "bad"}",{row % 2}' for row in range(80))
    (directory / "reviews.csv").write_text(f"review,stars\n{stars}\n")
    monkeypatch.chdir(directory)
    # As many latents and texts as a test needs; words and options are those of the docs.
    monkeypatch.setattr("sweeps.cli.features.TOP", 4)
    monkeypatch.setattr("analysis.features.probe_data.MOST_FILES", 40)
    monkeypatch.setattr("analysis.features.probe_data.MOST_PER_LABEL", 40)
    names = {
        "200": "6",
        "topk-0123456789ab": run_ids[0],
        "topk-ba9876543210": run_ids[1],
        "path/to/sae": f"results/demo/runs/{run_ids[1]}/sae",
    }
    done = CliRunner().invoke(app, [names.get(word, word) for word in words])
    assert done.exit_code == 0, done.output


def test_the_python_of_the_docs_runs(sweep, monkeypatch, capsys):
    (code,) = blocks(ROOT / "docs" / "features.md", "python")
    monkeypatch.chdir(sweep.parents[1])
    exec(compile(code, "features.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "mean cosine" in printed and "->" in printed
