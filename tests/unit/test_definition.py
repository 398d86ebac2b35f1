import json

import pytest
import yaml

import sweeps
from sae_core.errors import ConfigError, UnknownNameError
from sweeps.definition.sweep import Sweep, ready, write_template

SMALL = {
    "name": "small",
    "model": {"name": "demo", "hook_point": "blocks.2.hook_resid_post"},
    "data": {"dataset": "demo", "train_tokens": 100_000, "eval_tokens": 1000},
    "sae": {"d_sae": 64},
    "architectures": {"topk": {"k": [8, 16]}},
}


def test_from_yaml_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(SMALL))
    sweep = Sweep.from_yaml(file, ["name=other", "train.lr=1e-3"])
    assert sweep.name == "other"
    assert sweep.train == {"lr": 0.001}
    assert [run.sae.k for run in sweep.runs()] == [8, 16]
    assert sweep == Sweep(**{**SMALL, "name": "other", "train": {"lr": 0.001}})


@pytest.mark.parametrize("name", ready())
def test_every_ready_definition_is_valid(name):
    sweep = Sweep.from_yaml(name)
    assert sweep.name == name
    assert len({run.sae.architecture for run in sweep.runs()}) == 6


def test_the_demo_is_24_runs_of_a_million_tokens():
    runs = Sweep.from_yaml("demo").runs()
    assert len(runs) == 24
    assert {run.activations.train_tokens for run in runs} == {1_000_000}


def test_the_demo_on_another_model_and_text_has_other_ids(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "text.parquet").touch()
    mine = Sweep.from_yaml("demo", [f"model.name={tmp_path}/model", f"data.dataset={tmp_path}/text.parquet"]).runs()
    demo = Sweep.from_yaml("demo").runs()
    assert len(mine) == len(demo)
    assert not {run.run_id for run in mine} & {run.run_id for run in demo}


def test_a_written_definition_gives_the_same_runs_from_another_directory(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.txt").touch()
    monkeypatch.chdir(tmp_path)
    sweep = Sweep.from_dict(SMALL, ["model.name=./model", "data.dataset=[a.txt, b.txt]", "architectures.standard={l1_coefficient: 1e-3}"])
    written = tmp_path / "results" / "definition.yaml"
    written.parent.mkdir()
    written.write_text(sweep.to_yaml())
    ids = [run.run_id for run in sweep.runs()]
    monkeypatch.chdir(written.parent)
    assert [run.run_id for run in Sweep.from_yaml("./definition.yaml").runs()] == ids
    assert len(ids) == 6


def test_a_written_definition_leaves_out_what_was_not_given():
    assert yaml.safe_load(Sweep(**SMALL).to_yaml()) == SMALL


def test_plugins_are_files_beside_the_definition(tmp_path, monkeypatch):
    """They register before names are looked up, and the written definition finds them from anywhere."""
    (tmp_path / "mine").mkdir()
    plugin = tmp_path / "mine" / "my_sampler.py"
    plugin.write_text("from sweeps.samplers import SAMPLERS\n\n\n@SAMPLERS.register('mine')\ndef mine(seed, n_trials):\n    pass\n")
    definition = tmp_path / "mine" / "a.yaml"
    definition.write_text(yaml.safe_dump({**SMALL, "plugins": ["./my_sampler.py"], "search": {"trials": 3, "sampler": "mine"}}))
    sweep = Sweep.from_yaml(definition)
    assert sweep.plugins == [str(plugin)] == yaml.safe_load(sweep.to_yaml())["plugins"]
    monkeypatch.chdir(tmp_path)
    assert Sweep.from_dict(SMALL, ["plugins=[mine/my_sampler.py]"]).plugins == [str(plugin)]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("a.py", "plugins: `plugins` must be a valid list, but got plugins='a.py'."),
        ([3], "plugins: `plugins` must be a valid string, but got plugins=3."),
        (["./gone.py"], "a plugin must be importable, but got '"),
        (["no_such_module_of_mine"], "a plugin must be importable, but got 'no_such_module_of_mine'"),
        (["~nosuchuser/a.py"], "plugins must be modules or files, but got ['~nosuchuser/a.py']: RuntimeError"),
    ],
)
def test_plugins_that_cannot_be_imported(value, message):
    with pytest.raises(ConfigError) as error:
        Sweep(**SMALL, plugins=value)
    assert message in str(error.value)


def test_a_template_is_a_definition_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_template(tmp_path / "mine.yaml")
    sweep = Sweep.from_yaml("mine.yaml")
    assert sweep.name == "mine"
    assert len(sweep.runs()) == 12
    with pytest.raises(ConfigError, match=r"must be written to a new file, but got '.*mine\.yaml'"):
        write_template(tmp_path / "mine.yaml")


def test_toml_and_json_files(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(SMALL))
    assert Sweep.from_yaml(tmp_path / "a.json") == Sweep(**SMALL)
    (tmp_path / "a.toml").write_text('name = "a"\n[activations]\nsource = "synthetic"\n[architectures]\ntopk = {k = [8, 16]}\n')
    assert Sweep.from_yaml(tmp_path / "a.toml").architectures == {"topk": {"k": [8, 16]}}


def test_unknown_ready_definition():
    with pytest.raises(UnknownNameError, match=r"definition must be one of \[.*'demo'.*\], but got 'dmo'\. Did you mean 'demo'\?"):
        Sweep.from_yaml("dmo")


@pytest.mark.parametrize("name", ["no/such/file", "missing.yaml"])
def test_missing_file(name):
    with pytest.raises(ConfigError, match=f"a definition file must exist, but '{name}' is missing"):
        Sweep.from_yaml(name)


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"a definition must be a readable text file, but '.*a\.yaml' is not"):
        Sweep.from_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize("text", ["- a\n- b\n", "", "just text"])
def test_a_file_that_is_not_a_mapping(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match="a definition must be a mapping of sections, but got "):
        Sweep.from_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xef\xbb\xbfname: a\n1: b\n", "a.yaml: keys must be text of one line, but got 1. Put it in quotes, or correct it."),
        ("name: é".encode("latin-1"), "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xe9 in position 6: unexpected end of data."),
        (b"a: &a [*a]", "at most 200,000 values (aliases count each time), 20 levels deep, but got more in 'a'. Shorten it."),
        (b"#" * 5_000_000, "a definition must have at most 1,000,000 characters, but got more. Shorten it."),
        (
            b"a: &a [1, 1, 1, 1, 1, 1, 1]\n"
            + b"".join(b"%c: &%c [%b]\n" % (c, c, b", ".join([b"*%c" % (c - 1)] * 7)) for c in b"bcdefghijk"),
            "at most 200,000 values (aliases count each time), 20 levels deep, but got more in 'g'. Shorten it.",
        ),
    ],
    ids=["bom", "latin-1", "circle", "long", "bomb"],
)
@pytest.mark.slow
def test_files_that_no_definition_can_be(tmp_path, content, message):
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as error:
        Sweep.from_yaml(tmp_path / "a.yaml")
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("~nosuchuser/a.yaml", "a definition must be a readable text file, but '~nosuchuser/a.yaml' is not: RuntimeError: "),
        ("x" * 5_000, f"a definition must be a readable text file, but '{'x' * 79}... is not: "),
        ("\udcff.yaml", r"a definition file must exist, but '\\udcff.yaml' is missing."),
        ("a\x00b.yaml", r"a definition file must exist, but 'a\\x00b.yaml' is missing."),
        ("/dev/zero", "/dev/zero: a definition must have at most 1,000,000 characters"),
        (".", "a definition must be a readable text file, but '.' is not: [Errno 21] Is a directory"),
    ],
)
def test_paths_that_are_no_definition(path, message):
    with pytest.raises(ConfigError) as error:
        Sweep.from_yaml(path)
    assert message.replace("\\\\", "\\") in str(error.value)
    str(error.value).encode()


@pytest.mark.parametrize(
    ("definition", "overrides", "message"),
    [
        ([1], [], "a definition must be a mapping of sections, but got [1]."),
        (SMALL, "name=a", "overrides must be a list of key=value, but got 'name=a'. Write e.g."),
        (SMALL, [3], "overrides must be a list of key=value, but got [3]."),
        ({**SMALL, 3: 4}, [], "keys must be text of one line, but got 3."),
        (
            {**SMALL, "train": {"lr": {1e-3}}},
            [],
            "train.lr: `lr` must be text, a number, true, false, null, a list or a section, but got",
        ),
        ({**SMALL, "seeds": [10**400]}, [], "seeds: `seeds` must be at most 2^63 - 1 in size, but got seeds=1000"),
        ({**SMALL, "seeds": [10**9_000]}, [], "seeds: `seeds` must be at most 2^63 - 1 in size, but got seeds=int (Exceeds the limit"),
        (SMALL, ["a." * 30 + "b=1"], "a definition must hold at most 200,000 values (aliases count each time), 20 levels deep"),
    ],
)
def test_content_from_python_that_no_definition_can_have(definition, overrides, message):
    with pytest.raises(ConfigError) as error:
        Sweep.from_dict(definition, overrides)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a" * 256}, "name: `name` must be 1 to 255 letters, digits, '.', '_' and '-'"),
        (
            {"name": "a\x00"},
            r"name: `name` must be printable text of one line, but got name='a\x00'.",
        ),
        ({"name": "\ud800"}, r"printable text of one line, but got name='\ud800'. Correct it."),
        (
            {"model": {"name": "a\u2028"}},
            r"model.name: `name` must be printable text of one line, but got name='a\u2028'.",
        ),
        ({"model": {"\ud800": 1}}, r"model: keys must be text of one line, but got '\ud800'."),
        ({"model": {"name": "a" * 5_000}}, "model.name: `name` must be text of at most 4,096 characters, but got name='aaa"),
        ({"seeds": [1.0]}, "seeds: `seeds` must be a valid integer, but got seeds=1.0. Write 1."),
        ({"train": [0] * 200_000}, "at most 200,000 values (aliases count each time), 20 levels deep, but got more in 'train'"),
        ({"architecture": {}}, "unknown key 'architecture'. Did you mean 'architectures'?"),
        ({"name": "a/b"}, "because it names the results directory, but got name='a/b'. Choose another."),
        ({"name": ".activations"}, "but got name='.activations'"),
        ({"name": 3}, "name: `name` must be a valid string, but got name=3."),
        ({"seeds": 3}, "seeds: `seeds` must be a valid list, but got seeds=3. Write it in brackets, e.g. [0]."),
        ({"architectures": ["topk"]}, "architectures: `architectures` must be a valid mapping, but got architectures=['topk']."),
        ({"architectures": {"topk": 8}}, "architectures.topk: `topk` must be a valid mapping, but got topk=8."),
        ({"train": "fast"}, "train: `train` must be a valid mapping, but got train='fast'."),
        (
            {"wandb": {"mode": "onlin"}},
            "wandb.mode: `mode` must be 'offline', 'online' or 'disabled', but got mode='onlin'. Did you mean 'online'?",
        ),
        ({"wandb": {"team": "a"}}, "wandb: unknown key 'team'."),
    ],
)
@pytest.mark.slow
def test_bad_sections(changes, message):
    with pytest.raises(ConfigError) as error:
        Sweep(**{**SMALL, **changes})
    assert message in str(error.value)


def test_missing_sections_are_told_together():
    with pytest.raises(ConfigError) as error:
        Sweep()
    assert str(error.value).splitlines() == [
        "name: `name` must be given, but is missing. Add it.",
        "architectures: `architectures` must be given, but is missing. Add it.",
    ]


def test_the_package_offers_sweep():
    assert sweeps.Sweep is Sweep
    with pytest.raises(AttributeError, match="no attribute 'sweep'"):
        sweeps.sweep  # noqa: B018


@pytest.mark.parametrize("name", ["demo", "demo-seeds", "gpt2-small", "pythia-160m"])
def test_a_target_l0_takes_the_place_of_coefficients_in_a_ready_sweep(name):
    found = Sweep.from_yaml(name, ["target_l0=[16, 32, 64]"]).runs()
    asked = {(run.sae.architecture, run.sae.target_l0) for run in found}
    assert asked == {(architecture, target) for architecture in Sweep.from_yaml(name).architectures for target in (16, 32, 64)}


def test_a_target_l0_taken_away_leaves_room_for_coefficients():
    found = Sweep.from_yaml("demo", ["target_l0=null", "architectures={topk: {k: [8, 16]}}"]).runs()
    assert [run.sae.k for run in found] == [8, 16]
    with pytest.raises(ConfigError, match="`k` must be left out where `target_l0` is given"):
        Sweep.from_yaml("demo", ["architectures.topk.k=[8, 16]"]).runs()
