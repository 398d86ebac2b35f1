"""Facts of nodes in, problems out; the facts of this process, and its probe. On two real nodes: tests/ray/test_nodes.py."""

import copy
from types import SimpleNamespace

import pytest

from sae_core import plugins
from sweeps.execution import preflight
from sweeps.execution.preflight import Needs, facts_here, has_answered, needs_of, probe, problems

NEEDS = Needs(directory="/shared/demo", paths={"model.name": "/shared/model"}, plugins={"/shared/own.py": "ab12"})
HERE = {
    "versions": {"python": "3.11.7", "sae_sweep": "0.1.0", "torch": "2.13.0+cpu", "numpy": "2.4.6"},
    "code": "same",
    "plugins": {"/shared/own.py": "ab12"},
    "paths": {"/shared/model": "content"},
    "directory": "",
}


def there(**changes):
    facts = copy.deepcopy(HERE)
    for field, value in changes.items():
        if isinstance(value, dict):
            facts[field].update(value)
        else:
            facts[field] = value
    return facts


def test_a_node_that_has_everything():
    versions = {"torch": "2.13.0+cu130"}  # for another device
    assert problems(NEEDS, HERE, {"gpu-1 (10.0.0.2)": there(versions=versions)}) == []


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (
            there(versions={"torch": "2.12.0"}),
            "every node must have the same torch, but it is 2.13.0 here and 2.12.0 on gpu-1. Install torch 2.13.0 there.",
        ),
        (
            there(code="other", versions={"sae_sweep": "none"}),
            "every node must have the same sae-sweep, but its files here are not those on gpu-1 (version 0.1.0 here, none there). "
            "Install the same one there, or add `--ship-code`.",
        ),
        (
            there(plugins={"/shared/own.py": "cd34"}),
            "a plugin must be the same on every node, but '/shared/own.py' has checksum ab12 here; on gpu-1: cd34. "
            "Install the same one there, or add `--ship-code`.",
        ),
        (
            there(paths={"/shared/model": None}),
            "`model.name` must be on storage that every node shares, but '/shared/model' is missing on gpu-1. Copy it to shared storage.",
        ),
        (
            there(paths={"/shared/model": "other"}),
            "`model.name` must be on storage that every node shares, but '/shared/model' has other files on gpu-1. "
            "Copy it to shared storage.",
        ),
        (
            there(directory="[Errno 2] No such file or directory"),
            "`--results` must be on storage that every node shares, but '/shared/demo' cannot be used on gpu-1: "
            "[Errno 2] No such file or directory. Choose a directory on shared storage.",
        ),
        (
            "RuntimeEnvSetupError: no space",
            "every node must answer within some seconds, but not so gpu-1: RuntimeEnvSetupError: no space. "
            "Repeat the command, or take it out of the cluster.",
        ),
        (
            None,
            "every node must answer within some seconds, but not so gpu-1. Repeat the command, or take it out of the cluster.",
        ),
    ],
)
def test_what_a_node_lacks(facts, message):
    assert problems(NEEDS, HERE, {"gpu-1": facts}) == [message]


def test_a_problem_of_many_nodes_is_said_once_and_all_problems_are_said():
    facts = there(versions={"torch": "2.12.0", "numpy": "2.0.0"})
    found = problems(NEEDS, HERE, {f"gpu-{number}": facts for number in range(5)} | {"gpu-9": there(directory="gone")})
    assert [message.partition(", but ")[2].partition(". ")[0] for message in found] == [
        "it is 2.13.0 here and 2.12.0 on gpu-0, gpu-1, gpu-2 and 2 more",
        "it is 2.4.6 here and 2.0.0 on gpu-0, gpu-1, gpu-2 and 2 more",
        "'/shared/demo' cannot be used on gpu-9: gone",
    ]


def test_the_facts_of_a_process(tmp_path, monkeypatch):
    """What the launch sees of itself is no problem; what is missing is."""
    plugin, model = tmp_path / "own.py", tmp_path / "model"
    plugin.write_text("VALUE = 1\n")
    (model / "part").mkdir(parents=True)
    (model / "part" / "weights").write_text("12345")
    needs = Needs(str(tmp_path), {"model.name": str(model)}, {str(plugin): plugins.checksum_at(str(plugin))})
    with probe(needs.directory) as name:
        here, other = facts_here(needs, name, "a"), facts_here(needs, name, "b")
        assert has_answered(needs.directory, name, "b") and not has_answered(needs.directory, name, "c")
        assert problems(needs, here, {"b": other}) == []
        (model / "part" / "weights").write_text("123456")
        plugin.unlink()
        found = problems(needs, here, {"b": facts_here(needs, "another", "b")})
    assert len(found) == 3
    assert f"{str(plugin)!r} has checksum" in found[0] and "No such file" in found[0]
    assert "has other files on b" in found[1]
    assert "`--results`" in found[2] and "No such file" in found[2]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_needs_are_the_paths_of_the_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "checksums", lambda: {"own": "1"})
    (tmp_path / "data").mkdir()

    model, data = SimpleNamespace(name="gpt2-of-the-hub"), SimpleNamespace(dataset=str(tmp_path / "data"))
    config = SimpleNamespace(model=model, data=data)
    source = SimpleNamespace(path_fields=(("model", "name"), ("data", "dataset")), config=config)
    assert needs_of(tmp_path, [source]) == Needs(str(tmp_path), {"data.dataset": str(tmp_path / "data")}, {"own": "1"})


def test_the_checksum_of_the_code_covers_every_file(tmp_path, monkeypatch):
    for package in ("sae_core", "sweeps"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "a.py").write_text("1")
    monkeypatch.setattr(
        preflight.importlib.util, "find_spec", lambda name: type("Spec", (), {"submodule_search_locations": [tmp_path / name]})
    )
    before = preflight._code()
    (tmp_path / "sweeps" / "a.py").write_text("2")
    assert preflight._code() != before
