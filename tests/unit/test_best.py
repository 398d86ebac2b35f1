"""The run to use at an L0, for Python and the terminal."""

import json
from pathlib import Path

import pytest
from fake_results import config_of, metrics_at, realistic_records, record_of, write_sweep
from typer.testing import CliRunner

import analysis
from analysis.best import IN_SAELENS
from sae_core.errors import ConfigError
from sae_core.files import write_json
from sweeps.cli import app


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_sweep(tmp_path_factory.mktemp("results") / "demo", realistic_records((0, 1, 2)))
    write_json(directory / "runs" / "topk-16-1" / "sae" / "cfg.json", {"architecture": "topk"})
    for seed in (0, 1, 2):
        write_json(directory / "runs" / f"batchtopk-16-{seed}" / "sae" / "cfg.json", {"architecture": "jumprelu"})
    return directory


@pytest.mark.slow
def test_the_best_front_decides_and_the_best_of_its_seeds_is_taken(sweep: Path) -> None:
    table = analysis.load_table(sweep)
    found = analysis.best(sweep, 16)
    alike = table[(table["architecture"] == "batchtopk") & (table["l0"] == 16)]
    assert (found.architecture, found.setting) == ("batchtopk", "k=16")
    assert found.of_run["fvu"].value == pytest.approx(alike["fvu"].min()) and found.run_id == alike.loc[alike["fvu"].idxmin(), "run_id"]
    # The spread is that of ln FVU, so the mean is the geometric one.
    assert found.of_setting["fvu"].value == pytest.approx(alike["fvu"].mean(), rel=1e-3)
    assert found.of_setting["fvu"].low < found.of_setting["fvu"].value < found.of_setting["fvu"].high  # type: ignore[operator]
    assert next(iter(found.rivals)) == "BatchTopK" and "Standard (L1)" in found.rivals


@pytest.mark.slow
def test_it_says_where_the_run_is_and_how_to_load_it(sweep: Path) -> None:
    found = analysis.best(analysis.load_table(sweep), 16)
    assert found.directory == sweep / "runs" / found.run_id
    assert f'SparseAutoencoder.from_pretrained("{found.directory}/sae")' in found.loading and "SAE.load_from_disk" in found.loading


@pytest.mark.slow
def test_metric_and_architecture_can_be_chosen(sweep: Path) -> None:
    assert analysis.best(sweep, 16, metric="cosine", architecture="topk").run_id.startswith("topk-16")
    with pytest.raises(ConfigError, match=r"an architecture with finished runs must be one of .* but got 'tokp'. Did you mean 'topk'"):
        analysis.best(sweep, 16, architecture="tokp")
    with pytest.raises(ConfigError, match=r"a metric to compare by must be one of \['ce_loss_.* but got 'fuv'"):
        analysis.best(sweep, 16, metric="fuv")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("l0", "message"), [(400, "but got 400, and the nearest have L0"), (0, "above 0, but got 0"), (float("nan"), "but got nan")]
)
def test_an_l0_that_nothing_is_near_is_refused_with_what_there_is(l0: float, message: str, sweep: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        analysis.best(sweep, l0)


@pytest.mark.slow
def test_of_settings_with_about_the_same_l0_the_best_is_taken(tmp_path: Path) -> None:
    """A bad learning rate with a hair less L0 is dominated by none."""
    runs = [(16.0, 1e-3, 16.0, 0.2), (16.0, 2e-3, 16.02, 0.1), (32.0, 1e-3, 32.0, 0.08)]
    records = []
    for k, lr, l0, fvu in runs:
        config = config_of("topk", k, 0, lr=lr)
        records.append(record_of("topk", k, metrics_at(l0, fvu, 0.1), config=config, run_id=f"topk-{k:g}-{lr:g}"))
    assert analysis.best(write_sweep(tmp_path / "demo", records), 16).run_id == "topk-16-0.002"


@pytest.mark.slow
def test_runs_on_two_texts_are_not_ranked_but_answered_one_by_one(tmp_path: Path) -> None:
    two = [(8, 0.2, "a"), (8, 0.1, "b")]
    records = [record_of("topk", k, metrics_at(k, fvu, 0.1), eval_hash=text, run_id=f"{text}{k}") for k, fvu, text in two]
    sweep = write_sweep(tmp_path / "demo", records)
    with pytest.raises(ConfigError, match="must be measured on one held-out text to be ranked, but got 2: a, b"):
        analysis.best(sweep, 8)
    done = CliRunner().invoke(app, ["best", str(sweep), "--l0", "8", "--json"])
    assert [one["run_id"] for one in json.loads(done.stdout)["best"]] == ["a8", "b8"]


@pytest.mark.slow
def test_the_terminal_shows_numbers_path_and_code(sweep: Path) -> None:
    done = CliRunner().invoke(app, ["best", str(sweep), "--l0", "16"])
    assert done.exit_code == 0
    for part in ("Best FVU at L0 16: batchtopk-16", "delta CE", "mean of 3 repeats", "JumpReLU", "from_pretrained"):
        assert part in done.stdout
    assert max(map(len, done.stdout.splitlines())) < 400


def test_saelens_loads_what_it_knows() -> None:
    from sae_core.sae.saelens_files import SAELENS_FIELDS, TRANSCODERS

    assert {*SAELENS_FIELDS, *TRANSCODERS} == IN_SAELENS


@pytest.mark.slow
def test_a_file_is_no_sweep(tmp_path: Path) -> None:
    (tmp_path / "published.csv").write_text("l0,fvu\n16,0.1\n")
    found = CliRunner().invoke(app, ["best", str(tmp_path / "published.csv"), "--l0", "16"])
    assert found.exit_code == 2 and "directories of sweeps, but got the file" in found.output and "sae-sweep compare" in found.output
