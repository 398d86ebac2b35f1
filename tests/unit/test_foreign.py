"""Published tables on our axes: what is read, what is flagged, what is refused."""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis.foreign.known import METRICS as KNOWN
from analysis.plots.frontier import L0Fvu
from analysis.report.summary import frontier_lines
from analysis.statistics.matched import at_matched_l0
from analysis.words import titles
from sae_core.errors import ConfigError

WIDE = """"","Name","A-0.k","A-1.k","A-0/l0","A-1/l0","A-0/fve","A-1/fve","A-0/alive","A-1/alive","A-0/l0"
"0","first","8","16","tensor(8.0, device='cuda:0')","16.25","0.80","0.85","0.00004","0.00004","tensor(8.0, device='cuda:0')"
"1","second","32","64","1591.4","-64","0.90","0.95","0.00004","0.00004","1591.4"
"2","third","128","256","0","250","-0.2","tensor([0.97], device='cuda:0', dtype=torch.float64)","0.00004","0.00004","0"
"""
"""As a logger exports it: two SAEs per row, an index column, a column that stands twice, an l0 that is none, a constant column."""
LADDER = [{"l0": f"A-{i}/l0", "k": f"A-{i}.k", "explained_variance": f"A-{i}/fve", "mcc": f"A-{i}/alive"} for i in (0, 1)]


def written(directory: Path, text: str, name: str = "table.csv") -> Path:
    file = directory / name
    file.write_text(text)
    return file


@pytest.fixture
def wide(tmp_path: Path) -> pd.DataFrame:
    return analysis.read_table(written(tmp_path, WIDE), LADDER, constants={"architecture": "topk", "d_sae": 24_576})


def test_several_saes_per_row_are_read(wide: pd.DataFrame) -> None:
    assert wide["l0"].tolist() == [8.0, 16.25, 1591.4, -64.0, 0.0, 250.0]
    assert wide["explained_variance"].tolist() == [0.80, 0.85, 0.90, 0.95, -0.2, 0.97]
    assert wide["sparsity_value"].tolist() == [8, 16, 32, 64, 128, 256]
    assert wide["run_id"].iloc[3] == "row 2, SAE 2"
    assert set(wide["architecture"]) == {"topk"} and set(wide["d_sae"]) == {24_576}


def test_what_is_odd_stays_and_is_flagged(wide: pd.DataFrame) -> None:
    flags = wide["flags"].tolist()
    assert "l0 was written as a tensor" in flags[0]
    assert "l0 is not the one requested" in flags[2]
    assert "l0 is below 0" in flags[3]
    assert "l0 is 0" in flags[4] and "explained_variance is below 0" in flags[4]
    assert "explained_variance was written as a tensor" in flags[5]
    assert all("mcc is the same in every row" in text and "column 'A-0/l0' stands several times" in text for text in flags)
    assert "l0" not in flags[1].replace("A-0/l0", "")


def test_what_cannot_be_takes_no_part_in_fronts(wide: pd.DataFrame) -> None:
    assert wide["status"].tolist() == ["finished", "finished", "finished", "failed", "finished", "finished"]
    assert wide["error"].iloc[3] == "l0 cannot be -64.00."
    assert not analysis.pareto_front(wide, y="explained_variance", by="architecture").iloc[3]


def test_hypervolume_and_matched_values_are_those_of_the_numbers(tmp_path: Path) -> None:
    file = written(tmp_path, "arch,L0,loss rec.,d\nA,10,0.90,1\nA,40,0.97,1\nB,20,0.95,1\nB,80,0.99,1\n")
    table = analysis.read_table(file, {"architecture": "arch", "l0": "L0", "ce_loss_recovered": "loss rec."})
    # Steps in log2 L0 over [8, 128]: from 10 on 0.90, from 20 on 0.95, from 40 on 0.97, from 80 on 0.99.
    by_hand = 0.90 * (math.log2(128) - math.log2(10)) + 0.05 * math.log2(128 / 20) + 0.02 * math.log2(128 / 40) + 0.02 * math.log2(128 / 80)
    assert analysis.hypervolume(table, y="ce_loss_recovered", reference=0) == pytest.approx(by_hand, abs=1e-12)
    read = analysis.interpolate_at_l0(table, [20, 40], "ce_loss_recovered")
    assert read.loc["B", 20.0] == pytest.approx(0.95) and read.loc["A", 40.0] == pytest.approx(0.97)
    lower = analysis.hypervolume(table.assign(loss=1 - table["ce_loss_recovered"]), y="loss", reference=1, direction="min")
    assert lower == pytest.approx(by_hand, abs=1e-12)


def test_summaries_and_plots_take_the_table(tmp_path: Path) -> None:
    rows = [f"{name},{l0},{fvu},{seed}" for name in "ab" for l0, fvu in ((8, 0.3), (16, 0.2), (32, 0.12)) for seed in (0, 1)]
    table = analysis.read_table(
        written(tmp_path, "\n".join(["arch,k,nmse,seed", *rows])),
        [{"architecture": "arch", "k": "k", "l0": "k", "fvu": "nmse", "seed": "seed"}],
        constants={"d_sae": 4096, "model": "gpt2"},
    )
    assert table["setting_hash"].nunique() == 6 and table["comparison_hash"].nunique() == 1
    assert at_matched_l0(table, "fvu", [16])["a"][0].n_seeds == 2  # type: ignore[union-attr]
    assert "6 of 6 settings, means over 2 seeds" in frontier_lines(table)[0]
    info = L0Fvu.info(table, {})
    assert info is not None and info.y_label == "Fraction of variance unexplained"
    assert "d_sae 4096" in next(iter(titles(table).values())).full


def test_widths_and_texts_are_not_compared(tmp_path: Path) -> None:
    table = analysis.read_table(written(tmp_path, "w,l,y\n4096,8,.3\n4096,16,.2\n16384,8,.2\n"), {"d_sae": "w", "l0": "l", "fvu": "y"})
    assert table["comparison_hash"].nunique() == 2


def test_delta_ce_is_computed_from_its_parts_alone(tmp_path: Path) -> None:
    table = analysis.read_table(written(tmp_path, "a,b,c\n8,3.25,3.0\n"), {"l0": "a", "ce_loss_spliced": "b", "ce_loss_clean": "c"})
    assert table["delta_ce"].tolist() == [0.25]
    assert table["ce_loss_recovered"].isna().all() and table["fvu"].isna().all()


@pytest.mark.parametrize("cell", ["12,345", "0.95 ± 0.01", "0.9*", "tensor([0.1, 0.2])", "1_000", "abc", "0x10", "tensor(device='cuda:0')"])
def test_a_cell_that_cannot_be_interpreted_is_refused_by_name(cell: str, tmp_path: Path) -> None:
    file = written(tmp_path, f'l0,y\n8,0.5\n16,"{cell}"\n')
    with pytest.raises(ConfigError) as refused:
        analysis.read_table(file, {"l0": "l0", "fvu": "y"})
    assert f"'fvu' must be a number, but got {cell!r} in row 2, column 'y'" in str(refused.value)


def test_all_cells_are_refused_at_once(tmp_path: Path) -> None:
    file = written(tmp_path, "l0,y\nx,0.5\n16,z\n" + "?,1\n" * 12)
    with pytest.raises(ConfigError, match=r"'x' in row 1(.|\n)*'z' in row 2(.|\n)*and 4 more cells"):
        analysis.read_table(file, {"l0": "l0", "fvu": "y"})


@pytest.mark.parametrize(
    ("cell", "value", "flag"),
    [
        ("−288.2", -288.2, "below 0"),
        ("87.23%", 0.8723, "was written in percent"),
        ("1.", 1.0, ""),
        ("-.5e-2", -0.005, "below 0"),
        ("inf", math.nan, "is infinite"),
        ("1e999", math.nan, "is infinite"),
        ("N/A", math.nan, "is missing"),
        ("–", math.nan, "is missing"),
        ("np.float64(0.25)", 0.25, "as a tensor"),
        ("tensor(nan)", math.nan, "without a finite value"),
        ("tensor(0.5, device='cuda:0', grad_fn=<MeanBackward0>)", 0.5, "as a tensor"),
    ],
)
def test_what_a_cell_may_be(cell: str, value: float, flag: str, tmp_path: Path) -> None:
    table = analysis.read_table(written(tmp_path, f'l0,y\n8,"{cell}"\n'), {"l0": "l0", "explained_variance": "y"})
    assert table["explained_variance"].tolist() == pytest.approx([value], nan_ok=True)
    assert flag in table["flags"].iloc[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "`columns` must say which columns are ours, but got none"),
        ({"columns": {"lo": "l0"}}, "but got 'lo'"),
        ({"columns": {"l0": "L0"}}, "a column of the file must be one of .* but got 'L0'. Did you mean 'l0'"),
        ({"columns": {"x": "l0"}, "directions": {"x": "up"}}, "`directions` must give .* but got .*'up'"),
        ({"columns": [{"l0": "l0"}], "constants": [{}, {}]}, "`constants` must be .* but got 2 for 1"),
        ({"columns": {"l0": "twice"}}, "a column must stand once in the file, but 'twice'"),
        ({"columns": {"l0": "l0", "run_id": "same"}}, "`run_id` must tell rows apart, but got 's' several times"),
        (
            {"columns": {"l0": "l0", "seed": "one"}},
            "must differ in a setting, but got row 1 and row 2 with seed 0 and the same settings.*as 'variant'",
        ),
        ({"columns": {"l0": "l0", "d_sae": "y"}}, "'d_sae' must be a whole number, but got '0.5' in row 1, column 'y'"),
    ],
)
def test_what_is_asked_for_wrongly_is_refused(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = written(tmp_path, "l0,y,twice,twice,same,one\n8,0.5,1,1,s,0\n16,0.4,1,2,s,0\n")
    with pytest.raises(ConfigError, match=message):
        analysis.read_table(file, **arguments)


def test_a_mapping_that_is_turned_round_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="goes from our names to those of the file: turn it round"):
        analysis.read_table(written(tmp_path, "L 0,y\n8,1\n"), {"L 0": "l0"})


def test_other_metrics_have_the_direction_that_is_given(tmp_path: Path) -> None:
    table = analysis.read_table(
        written(tmp_path, "l,absorption\n8,0.3\n16,0.4\n"), {"l0": "l", "absorption": "absorption"}, directions={"absorption": "min"}
    )
    assert analysis.pareto_front(table, y="absorption").tolist() == [True, False]


PANEL = {
    "model": "gemma",
    "eval": {"context_size": 128},
    "per_sae": [{"arch": "topk", "l0": 20.0, "lr": None}, {"arch": "gated", "l0": 41.5}],
}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.json", json.dumps(PANEL["per_sae"])),
        ("named.json", json.dumps({"a": {"arch": "topk", "l0": 20.0}, "b": {"arch": "gated", "l0": "41.5"}})),
        ("panel.json", json.dumps(PANEL)),
        ("lines.jsonl", "\n".join(map(json.dumps, PANEL["per_sae"]))),
        ("table.tsv", "arch\tl0\ntopk\t20\ngated\t41.5\n"),
        ("table.csv", "\ufeffarch, l0\ntopk, 20\ngated, 41.5\n"),
    ],
)
def test_formats(name: str, content: str, tmp_path: Path) -> None:
    table = analysis.read_table(written(tmp_path, content, name), {"architecture": "arch", "l0": "l0"})
    assert table["architecture"].tolist() == ["topk", "gated"] and table["l0"].tolist() == [20.0, 41.5]


def test_what_holds_for_a_whole_panel_can_be_mapped(tmp_path: Path) -> None:
    columns = {"architecture": "arch", "l0": "l0", "model": "model", "context_size": "eval.context_size"}
    table = analysis.read_table(written(tmp_path, json.dumps(PANEL), "panel.json"), columns)
    assert table["model"].tolist() == ["gemma"] * 2 and table["context_size"].tolist() == [128, 128]


def test_of_several_lists_one_is_named(tmp_path: Path) -> None:
    file = written(tmp_path, json.dumps({**PANEL, "others": [{"l0": 1}]}), "panel.json")
    with pytest.raises(ConfigError, match=r"several: \['others', 'per_sae'\]"):
        analysis.read_table(file, {"l0": "l0"})
    assert analysis.read_table(file, {"l0": "l0"}, rows="others")["l0"].tolist() == [1.0]


def test_parquet_frames_and_compressed_files(tmp_path: Path) -> None:
    frame = pd.DataFrame({"l0": [8.0, np.nan], "y": ["0.5", None]}, index=pd.Index([7, 9], name="step"))
    frame.to_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(frame.to_csv().encode()))
    for source in (frame, tmp_path / "t.parquet", tmp_path / "t.csv.gz"):
        table = analysis.read_table(source, {"l0": "l0", "fvu": "y"})
        assert table["l0"].tolist() == pytest.approx([8.0, np.nan], nan_ok=True)
        assert "l0 is missing" in table["flags"].iloc[1]


@pytest.mark.parametrize("name", ["none.csv", "table.xlsx", "broken.json", "empty.csv"])
def test_files_that_are_no_tables_are_refused_by_name(name: str, tmp_path: Path) -> None:
    if name != "none.csv":
        (tmp_path / name).write_text("{" if name == "broken.json" else "")
    with pytest.raises(ConfigError, match=name):
        analysis.read_table(tmp_path / name, {"l0": "l0"})


def result(sae: str, kind: str, metrics: dict[str, Any], **cfg: Any) -> dict[str, Any]:
    about = {"sae_lens_release_id": "sweep", "sae_lens_id": sae, "eval_config": {"context_size": 128, "dataset": "owt"}}
    cfg = {"architecture": "topk", "d_in": 512, "d_sae": 4096, "metadata": {"model_name": "pythia", "hook_name": "resid"}, **cfg}
    return {"eval_type_id": kind, "eval_result_metrics": metrics, "sae_cfg_dict": cfg, "eval_result_details": [], **about}


def core(sae: str, l0: float, spliced: float, kl: float = 0.1, **cfg: Any) -> dict[str, Any]:
    losses = {"ce_loss_score": 0.9, "ce_loss_with_ablation": 12.0, "ce_loss_with_sae": spliced, "ce_loss_without_sae": 3.0}
    metrics = {
        "model_performance_preservation": losses,
        "model_behavior_preservation": {"kl_div_with_sae": kl},
        "reconstruction_quality": {"explained_variance": 0.98, "mse": 1.5, "cossim": 0.9},
        "sparsity": {"l0": l0, "l1": 4.0},
        "token_stats": {"total_tokens_eval_reconstruction": 1000},
    }
    return result(sae, "core", metrics, **cfg)


@pytest.fixture
def saebench(tmp_path: Path) -> Path:
    probing = {"sae": {"sae_test_accuracy": -1.0, "sae_top_1_test_accuracy": 0.77}, "sae_metrics_by_k": {"1": {"test_auc": 0.8}}}
    files = {
        "core/sweep_a_eval_results.json": core("a", 20.0, 3.5),
        "core/sweep_b_eval_results.json": core("b", 40.0, 3.25, kl=-1),
        "sparse_probing/sweep_a_eval_results.json": result("a", "sparse_probing", probing),
    }
    for name, content in files.items():
        file = tmp_path / "results" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    return tmp_path / "results"


def test_saebench_results_are_a_row_per_sae(saebench: Path) -> None:
    table = analysis.read_table(saebench)
    assert table["run_id"].tolist() == ["sweep/a", "sweep/b"]
    assert table["l0"].tolist() == [20.0, 40.0] and table["delta_ce"].tolist() == [0.5, 0.25]
    assert table["ce_loss_recovered"].tolist() == [0.9, 0.9] and table["context_size"].tolist() == [128, 128]
    assert table["sparse_probing.sae.sae_top_1_test_accuracy"].tolist() == pytest.approx([0.77, np.nan], nan_ok=True)
    assert analysis.pareto_front(table, y="delta_ce").tolist() == [True, True]
    assert not table["flags"].str.contains("missing").any()  # that nobody probed an SAE is not odd


def test_what_saebench_calls_otherwise_is_not_taken_for_ours(saebench: Path) -> None:
    table = analysis.read_table(saebench)
    assert table[["explained_variance", "fvu", "mse"]].isna().all(axis=None)
    assert table["core.reconstruction_quality.explained_variance"].tolist() == [0.98, 0.98]
    mapped = analysis.read_table(saebench, {"explained_variance": "core.reconstruction_quality.explained_variance"})
    assert mapped["explained_variance"].tolist() == [0.98, 0.98] and mapped["l0"].tolist() == [20.0, 40.0]


def test_saebenchs_mark_of_no_value_is_no_number(saebench: Path) -> None:
    table = analysis.read_table(saebench)
    assert math.isnan(table["kl"].iloc[1]) and "kl was -1, which stands for no value" in table["flags"].iloc[1]
    assert table["sparse_probing.sae.sae_test_accuracy"].isna().all()


def test_one_result_is_read_alone(saebench: Path) -> None:
    assert analysis.read_table(saebench / "core" / "sweep_b_eval_results.json")["l0"].tolist() == [40.0]


def test_snapshots_of_one_sae_are_told_apart_by_their_directories(saebench: Path) -> None:
    for step, l0 in ((1, 30.0), (2, 25.0)):
        file = saebench / f"step-{step}" / "core" / "sweep_c_eval_results.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(core("c", l0, 3.4)))
    assert analysis.read_table(saebench)["run_id"].tolist() == ["sweep/a", "sweep/b", "sweep/c/step-1", "sweep/c/step-2"]
    (saebench / "step-1" / "core" / "again_eval_results.json").write_text(json.dumps(core("c", 31.0, 3.4)))
    with pytest.raises(ConfigError, match=r"two of 'core' for 'c' of 'sweep'.*again_eval_results.json"):
        analysis.read_table(saebench)


def test_other_json_beside_saebenchs_results_is_refused(saebench: Path) -> None:
    (saebench / "notes.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"notes\.json"):
        analysis.read_table(saebench)


def test_the_specs_are_those_that_records_have() -> None:
    from sae_core.metrics import METRICS

    assert {name: METRICS[name].spec for name in KNOWN} == KNOWN
