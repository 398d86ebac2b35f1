import json
import sys
from contextlib import nullcontext

import growth
import pytest
import torch
from growth import BASE, STEPS, Size, read_csv, write_csv
from growth_figure import PANELS, Point, draw, last_growth
from measuring import Spread, fastest, ratio, write_result
from our_steps import Steps
from step_inputs import SHIFTED, activations, initial_state, save, sparse_state
from steps import ARCHITECTURES, ratios
from sweep import for_all_steps
from worker import Worker, load_parameters, peers_python


def test_a_spread_is_of_at_least_one_value():
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    with pytest.raises(ValueError, match=r"values=\[\]"):
        Spread.of([])


def test_a_spread_is_told_in_its_unit():
    assert Spread(0.613, 0.601, 0.6551).text("ms", scale=1e3) == "613 (601–655) ms"
    assert Spread(2.5, 2.25, 3.0).text(digits=2) == "2.50 (2.25–3.00)"


def test_a_ratio_is_that_of_paired_rounds():
    # A machine that is half as fast in the second round slows both, and the ratio does not notice; that of two medians would be 15 / 5.
    assert ratio([10.0, 20.0], [4.0, 8.0]) == Spread(2.5, 2.5, 2.5)
    assert ratio([10.0, 20.0, 30.0], [10.0, 5.0, 10.0]) == Spread(3.0, 1.0, 4.0)
    with pytest.raises(ValueError, match="1 and 2"):
        ratio([1.0], [1.0, 2.0])


def test_the_better_settings_are_compared():
    rounds = {
        "ours": {"float32": [4.0, 4.0], "bfloat16": [2.0, 1.0]},
        "saelens": {"float32": [10.0, 10.0], "bfloat16": [6.0, 5.0]},
    }
    assert fastest(rounds["ours"]) == "bfloat16"
    assert ratios(rounds) == {"default": Spread(7.5, 5.0, 10.0), "best": Spread(4.0, 3.0, 5.0)}
    assert ratios({"ours": rounds["ours"]}) == {}


def test_a_result_says_what_it_was_measured_on(tmp_path):
    path = write_result(tmp_path / "new", "steps", {"ratio": Spread(2.0, 1.0, 3.0)}, peer={"sae-lens": "6.54.12"})
    content = json.loads(path.read_text())
    assert path.name == "steps.json"
    assert content["results"] == {"ratio": {"median": 2.0, "low": 1.0, "high": 3.0}}
    assert content["peer_versions"] == {"sae-lens": "6.54.12"}
    assert {"date", "command", "hardware", "versions"} <= content.keys()


def test_time_for_all_steps_counts_what_comes_before_once():
    # 3 s before the first step, which takes 2 s, then 1 s each: 5 s + 9 of 1 s.
    assert for_all_steps([3.0, 5.0, 6.0, 7.0], 10) == 14.0
    assert for_all_steps([3.0, 5.0, 6.0, 7.0], 3) == 7.0
    with pytest.raises(ValueError, match="got 1"):
        for_all_steps([3.0, 5.0], 10)
    with pytest.raises(ValueError, match="2 to 2 steps to go by, but got 3"):
        for_all_steps([3.0, 5.0, 6.0, 7.0], 2)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_both_states_are_complete_and_the_sparse_one_has_the_l0_asked_for(architecture, tmp_path):
    x, features = activations(16, 64, l0=4, n_tokens=256)
    assert x.norm(dim=1).mean() == pytest.approx(4.0)  # sqrt(d_in)
    fields = {"d_sae": 64} | ({} if architecture in SHIFTED else {"k": 4})
    fields |= {"matryoshka_widths": [16, 32]} if architecture == "matryoshka_batchtopk" else {}
    save(tmp_path / "x", {"x": x})
    found = {}
    for name, state in (("initial", initial_state(architecture, 16, 64)), ("sparse", sparse_state(architecture, features, x, l0=4))):
        save(tmp_path / name, state)
        steps = Steps()
        steps.open(architecture, fields, 256, 1e-6, str(tmp_path / "x"), str(tmp_path / name), ["float32"])
        assert len(steps.measure("float32", 2)) == 2
        found[name] = steps.l0("float32")
    assert found["sparse"] == pytest.approx(4, abs=0.3)
    if architecture in SHIFTED:
        assert 20 < found["initial"] < 44  # about half of 64


def test_growth_at_the_end_is_an_exponent():
    points = [Point("k", "ours", x, seconds, seconds, seconds, measured=True) for x, seconds in ((8, 1.0), (32, 4.0), (16, 1.0))]
    assert last_growth(points) == pytest.approx(2.0)  # from 16 to 32: four times as much


def test_points_of_the_csv_come_back(tmp_path):
    points = [Point("d_sae", "saelens", 65_536, 1.5, 1.25, 2.0, measured=True), Point("tokens", "ours", 8, 3.0, 3.0, 3.0, measured=False)]
    write_csv(tmp_path / "new" / "growth.csv", points)
    assert read_csv(tmp_path / "new" / "growth.csv") == points


@pytest.mark.slow
def test_what_patience_does_not_allow_is_computed(monkeypatch):
    monkeypatch.setattr(growth, "peers_python", lambda: None)
    monkeypatch.setattr(growth, "_inputs", nullcontext)
    monkeypatch.setattr(growth, "_step_seconds", lambda size, *_: [size.weights / (BASE["d_in"] * 1024)])
    points = list(growth._steps(["d_sae"], 1, 10.0 * (STEPS + 1)))
    assert [(point.x, point.median, point.measured) for point in points] == [
        (1024, 1.0, True), (2048, 2.0, True), (4096, 4.0, True), (16_384, 16.0, False), (32_768, 32.0, False), (65_536, 64.0, False)
    ]  # fmt: skip


@pytest.mark.slow
def test_what_memory_does_not_hold_is_computed(monkeypatch):
    monkeypatch.setattr(growth, "peers_python", lambda: None)
    monkeypatch.setattr(growth, "_step_seconds", lambda *_: [0.0])
    monkeypatch.setattr(growth.provenance, "memory_bytes", lambda: 2 * Size(768, 4096, 32).memory_bytes)
    assert [point.x for point in growth._steps(["d_sae"], 1, 1.0) if not point.measured] == [16_384, 32_768, 65_536]


@pytest.mark.slow
def test_the_figure_has_all_panels(tmp_path):
    points = [
        Point(panel, program, x, x * 1e-3, x * 0.9e-3, x * 1.2e-3, measured=x < 4096)
        for panel in PANELS
        for program in ("ours", "saelens")
        for x in (1024, 2048, 4096)
    ]
    assert [path.name for path in draw(points, tmp_path)] == ["growth.png", "growth.svg"]
    drawn = (tmp_path / "growth.svg").read_text()
    assert drawn.count('id="axes_') == len(PANELS)


def test_a_worker_answers_and_tells_what_it_raised(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("from worker import serve\nserve({'double': lambda x: print('noise') or 2 * x})\n")
    with Worker(sys.executable, str(script), threads=1) as worker:
        assert worker.call("double", x=21) == 42
        with pytest.raises(RuntimeError, match=r"(?s)script\.py.*KeyError: 'halve'"):
            worker.call("halve", x=2)
        assert worker.call("double", x=[1]) == [1, 1]


def test_a_worker_that_ended_is_told(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys\nsys.stdin.readline()\nsys.exit(3)\n")
    with Worker(sys.executable, str(script), threads=1) as worker, pytest.raises(RuntimeError, match="exit code 3"):
        worker.call("anything")


def test_weights_of_another_architecture_are_refused():
    with pytest.raises(ValueError, match=r"missing=\['bias', 'weight'\] and unknown=\['W'\]"):
        load_parameters(torch.nn.Linear(2, 2), {"W": torch.zeros(2, 2)})


def test_a_peer_that_is_not_there_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("PEERS_PYTHON", str(tmp_path / "python"))
    assert peers_python() is None
    monkeypatch.setenv("PEERS_PYTHON", sys.executable)
    assert peers_python() is not None


def test_the_same_activations_every_time():
    first, again = (activations(16, 32, l0=4, n_tokens=64)[0] for _ in range(2))
    assert torch.equal(first, again)
