"""The files of `sae-sweep cluster`: each through the validator of the program that reads it, for several clusters; and what is refused."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import jsonschema
import pytest
import yaml
from documents import ROOT
from small_sweep import small_sweep
from typer.testing import CliRunner

from sae_core.errors import ConfigError
from sweeps.cli import app
from sweeps.clusters.files import Kind, Options, write

CLUSTERS = {
    "one-node": {},
    "one-gpu": {"gpus": 1, "mirror": "s3://bucket/prefix"},
    "gpus": {"nodes": 4, "gpus": 8, "cpus": 64, "hours": 1.5, "partition": "gpu", "account": "lab", "hosts": "a,b.c,10.0.0.1"},
    "mirrored": {"nodes": 2, "mirror": "s3://bucket/prefix", "image": "registry.example/sae-sweep:1", "name": f"2_Jobs_{'x' * 26}_of_mine"},
}


@pytest.fixture(params=CLUSTERS)
def text_of(request, tmp_path, monkeypatch):
    """Kind -> the text of its file, for a definition whose path needs quotes."""
    monkeypatch.chdir(tmp_path)
    definition = tmp_path / "it's a sweep.yaml"
    definition.write_text(small_sweep().to_yaml())
    return lambda kind: write(kind, Options(definition=str(definition), **CLUSTERS[request.param]))[0].read_text()


def schema(name):
    return jsonschema.Draft202012Validator(json.loads((ROOT / "tests" / "schemas" / f"{name}.json").read_text()))


def check_bash(script):
    """Bash reads it."""
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def check_shell(script):
    """Bash reads it, and ShellCheck finds nothing to say."""
    check_bash(script)
    program = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    if program is None:
        pytest.skip("shellcheck is not installed: it is in the extra `dev`")
    done = subprocess.run([program, "--shell=bash", "-"], input=script, text=True, capture_output=True, check=False)
    assert done.stdout == ""


def instructions(dockerfile):
    """The instructions of a Dockerfile, with what follows them; lines that end with a backslash go on."""
    text = "\n".join(line for line in dockerfile.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


@pytest.mark.slow
def test_slurm(text_of):
    check_shell(text_of("slurm"))


def test_kuberay(text_of):
    job = yaml.safe_load(text_of("kuberay"))
    schema("rayjob").validate(job)
    cluster = job["spec"]["rayClusterSpec"]
    # What the operator checks beside its schema.
    assert cluster["headGroupSpec"]["template"]["spec"]["restartPolicy"] == "Never"
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", job["metadata"]["name"]) and len(job["metadata"]["name"]) <= 47
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        spec = group["template"]["spec"]
        volumes = {volume["name"] for volume in spec["volumes"]}
        assert {mount["name"] for container in spec["containers"] for mount in container["volumeMounts"]} == volumes
    assert shlex.split(job["spec"]["entrypoint"])[:3] == ["sae-sweep", "run", "/definition/it's a sweep.yaml"]


def test_a_mistyped_field_of_a_pod_is_noticed(tmp_path):
    job = yaml.safe_load(write("kuberay", Options(), tmp_path / "job.yaml")[0].read_text())
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    with pytest.raises(jsonschema.ValidationError, match="imagePullPolice"):
        schema("rayjob").validate(job)


def test_ray_up(text_of):
    # `ray up` validates before it starts machines; there is no public name for that alone.
    from ray.autoscaler._private.util import prepare_config, validate_config

    cluster = yaml.safe_load(text_of("ray-up"))
    validate_config(prepare_config(cluster))
    for command in cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]:
        check_bash(command)


def test_skypilot(text_of):
    text = text_of("skypilot")
    task = yaml.safe_load(text)
    schema("skypilot-task").validate(task)
    check_shell(f"{task['setup']}\n{task['run']}")


def test_skypilot_itself_reads_its_file(text_of):
    sky = pytest.importorskip("sky", reason="SkyPilot is not installed; its schema is checked without it")
    text = text_of("skypilot")
    assert sky.Task.from_yaml_str(text).num_nodes == yaml.safe_load(text)["num_nodes"]


def test_docker(text_of):
    found = instructions(text_of("docker"))
    assert {name for name, _ in found} <= {"FROM", "USER", "COPY", "RUN", "WORKDIR", "CMD"}
    assert found[0][0] == "FROM" and re.search(r":\d+\.\d+\.\d+-py3\d+$", found[0][1])
    assert [rest for name, rest in found if name == "USER"] == ["ray"]
    for name, rest in found:
        if name == "RUN":
            check_bash(rest)
            assert all("==" in word for word in shlex.split(rest) if re.match(r"sae-sweep|ray\[|torch", word))
        if name == "CMD":
            json.loads(rest)


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.slow
def test_the_command_writes_a_file_and_never_over_one(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["cluster", kind, "--gpus", "8", "--nodes", "2"])
    assert done.exit_code == 0, done.output
    (file,) = tmp_path.iterdir()
    assert f"{file.name} is written" in done.stdout
    again = CliRunner().invoke(app, ["cluster", kind])
    assert again.exit_code == 2
    assert f"must be a new file, but got {file.name!r}" in again.stderr


def test_what_a_kind_has_no_use_for_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["cluster", "kuberay", "demo", "--partition", "gpu", "--hosts", "a"])
    assert done.exit_code == 0
    assert done.stderr == "kuberay has no use for partition, hosts: ignored.\n"
    assert "sae-sweep run demo" in (tmp_path / "demo-rayjob.yaml").read_text()


def test_everything_that_cannot_be_is_said_at_once(tmp_path):
    wrong = {
        "nodes": 0,
        "hours": float("nan"),
        "name": "a b",
        "image": "$(rm)",
        "results": "/tmp/results",
        "mirror": "s3://key:secret@bucket",
    }
    with pytest.raises(ConfigError) as raised:
        write("kuberay", Options(definition="missing.yaml", **wrong), tmp_path / "job.yaml")
    lines = str(raised.value).splitlines()
    assert len(lines) == 7
    for value in ("'missing.yaml'", "got 0", "got nan", "'a b'", "'$(rm)'", "'/tmp/results'", "'s3://***bucket'"):
        assert value in str(raised.value)
    assert "secret" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="'bucket'"):
        write("slurm", Options(mirror="bucket"), tmp_path / "job.sbatch")
    with pytest.raises(ConfigError, match=r"'slrm'. Did you mean 'slurm'"):
        write("slrm", Options(), tmp_path / "job.sbatch")
