import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import pytest
from inline import launch
from small_sweep import results_of, small_sweep
from told import Told

from sae_core.errors import ConfigError
from sweeps.storage import mirror_copying
from sweeps.storage.mirror import Mirror
from sweeps.storage.mirror_fetch import fetch
from sweeps.storage.store import Store

TINY = {"activations": {"source": "synthetic", "d_in": 8, "train_tokens": 600, "eval_tokens": 100}, "sae": {"d_sae": 16}}
ACTIVATIONS = TINY["activations"]


@pytest.fixture(autouse=True)
def _without_report(monkeypatch):
    monkeypatch.setattr("analysis.report.write_report", lambda *_: None)
    monkeypatch.setattr(mirror_copying, "PASS_SECONDS", 0.05)


class Notes(Told):
    def about_mirror(self):
        return [line for line in self.notes if line.startswith("mirror: ")]


def tiny(**changes):
    return small_sweep(**{**TINY, **changes})


def mirrored(results, url, **changes):
    """A launch with a mirror, and what it said about it."""
    notes = Notes()
    return launch(tiny(**changes), results=results, mirror=str(url), progress=notes), notes.about_mirror()


def content(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


@pytest.fixture
def url(tmp_path):
    return tmp_path / "mirror"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Results of a launch without a mirror, and their mirror."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analysis.report.write_report", lambda *_: None)
        directory = tmp_path_factory.mktemp("finished")
        done, notes = mirrored(directory / "results", directory / "mirror")
    assert (done.finished, done.not_mirrored, notes) == (4, {}, [])
    return directory


@pytest.fixture
def there(finished, url):
    """A mirror with all runs."""
    shutil.copytree(finished / "mirror", url)
    return url


def fetched(n_runs, url):
    return f"mirror: {n_runs} runs with a record and 0 checkpoints fetched from {url}"


@pytest.mark.slow
def test_everything_but_caches_is_there_and_an_empty_machine_starts_from_it(tmp_path, finished, there):
    results = finished / "results" / "small"
    here = {name: data for name, data in content(results).items() if name[0] != "." and name != "progress.json"}
    assert here == {name: data for name, data in content(there).items() if name[0] != "."}
    done, notes = mirrored(tmp_path / "b", there)
    assert (done.finished, notes) == (4, [fetched(4, there)])
    assert content(tmp_path / "b" / "small" / "runs") == content(results / "runs")  # fetched, not trained
    assert len(Store(tmp_path / "b" / "small").facts()["launches"]) == 2
    assert not list((tmp_path / "b" / "small").glob(".mirror-*"))


@pytest.mark.slow
def test_any_url_of_fsspec(tmp_path):
    url = f"memory://{tmp_path.name}/deep"
    assert mirrored(tmp_path / "a", url)[0].not_mirrored == {}
    assert mirrored(tmp_path / "b", url)[1] == [fetched(4, url)]


@pytest.mark.slow
def test_results_here_are_the_truth_and_what_is_there_is_not_copied_again(tmp_path, finished, there):
    shutil.copytree(finished / "results", tmp_path / "a")
    runs = sorted((tmp_path / "a" / "small" / "runs").iterdir())
    before = content(runs[0])
    shutil.rmtree(runs[1])
    shutil.rmtree(there / "runs" / runs[0].name)  # which is copied again
    times = {path: path.stat().st_mtime_ns for path in (there / "runs").rglob("*")}
    done, notes = mirrored(tmp_path / "a", there)
    assert (done.finished, content(runs[0]), notes) == (4, before, [fetched(1, there)])
    assert content(there / "runs") == content(tmp_path / "a" / "small" / "runs")
    assert {path: path.stat().st_mtime_ns for path in times if path.is_file()} == {p: time for p, time in times.items() if p.is_file()}


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize(
    "file",
    [
        *("record.json", "sae/sae_weights.safetensors", "history.jsonl", "sae/cfg.json", "config.json"),
        *("documents.parquet", "latents.safetensors"),
    ],
)
@pytest.mark.slow
def test_a_damaged_run_there_is_noticed(tmp_path, there, file, damage):
    run, *others = sorted((there / "runs").iterdir())
    damage(run / file)
    store, notes = Store(tmp_path / "small"), []
    store.directory.mkdir()
    fetch(Mirror(str(there), store), tiny().runs(), notes.append)
    assert sorted(store.records()) == [other.name for other in others]
    assert not (store.paths.runs / run.name).exists()
    if (file, damage) != ("record.json", Path.unlink):
        assert f"run {run.name} is damaged at {there} and not used: {Path(file).name}" in notes[0]


@pytest.mark.slow
def test_a_damaged_run_there_is_trained_again_and_replaced(tmp_path, finished, there):
    flip(sorted(there.rglob("record.json"))[0])
    done, notes = mirrored(tmp_path / "b", there)
    assert (done.finished, done.not_mirrored, notes[1:]) == (4, {}, [fetched(3, there)])
    assert results_of(finished / "results" / "small") == results_of(tmp_path / "b" / "small")
    assert content(there / "runs") == content(tmp_path / "b" / "small" / "runs")


def test_what_is_not_a_mirror_of_this_sweep_is_refused(tmp_path, url):
    url.mkdir()
    (url / "notes.txt").touch()
    with pytest.raises(ConfigError, match=r"`--mirror` must be empty or a sweep's, but '.*mirror' holds \['notes.txt'\]"):
        mirrored(tmp_path / "a", url)
    assert not (tmp_path / "a").exists()


def test_the_mirror_of_another_sweep_is_refused(tmp_path, there):
    with pytest.raises(ConfigError, match=r"`--mirror` must hold this sweep, but '.*mirror' holds another: d_in is 8 there and 4 here"):
        mirrored(tmp_path / "b", there, activations={**ACTIVATIONS, "d_in": 4})
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nope://x", r"a URL that fsspec opens.* but got 'nope://x': .*Protocol not known: nope"),
        ("ftp://me:secret@host/x", r"no user, password or key, but got 'ftp://\*\*\*host/x'.*FSSPEC_FTP_PASSWORD"),
        ("s3://bucket/x?key=secret", r"no user, password or key, but got 's3://\*\*\*bucket/x'"),
        ("file:///proc/none", r"must be readable and writable, but got 'file:///proc/none'"),
        ("{results}/small/mirror", r"must lie outside of the results, but got '.*small/mirror'"),
        ("{results}", r"must lie outside of the results"),
        (7, "mirror"),
    ],
)
def test_urls_that_cannot_be(tmp_path, url, message):
    with pytest.raises(ConfigError, match=message) as error:
        launch(tiny(), results=tmp_path / "r", mirror=url.format(results=tmp_path / "r") if isinstance(url, str) else url)
    assert "secret" not in str(error.value)
    assert not (tmp_path / "r").exists()


def test_a_mirror_that_does_not_answer_is_refused(tmp_path, url, monkeypatch):
    answers = threading.Event()
    monkeypatch.setattr("sweeps.storage.mirror.ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(fsspec.get_filesystem_class("file"), "pipe_file", lambda *_: answers.wait(20))
    with pytest.raises(ConfigError, match=r"must be readable and writable, but got '.*mirror': no answer within 0 s"):
        mirrored(tmp_path / "a", url)
    answers.set()
    assert not (tmp_path / "a").exists()


class Failing:
    """A backend that does not take some files, for some time."""

    def __init__(self, monkeypatch, fails):
        self.real, self.fails, self.n_failed = fsspec.get_filesystem_class("file").put_file, fails, 0

        def put_file(fs, here, there, **options):
            if self.fails(there):
                self.n_failed += 1
                raise ConnectionError("no route to host")
            return self.real(fs, here, there, **options)

        monkeypatch.setattr(fsspec.get_filesystem_class("file"), "put_file", put_file)


@pytest.mark.slow
def test_failures_are_told_once_and_what_is_not_copied_at_the_end_is_listed(tmp_path, url, monkeypatch):
    failing = Failing(monkeypatch, lambda there: "topk" in there)
    done, notes = mirrored(tmp_path / "a", url)
    assert done.finished == 4 and failing.n_failed > 1
    assert {name.partition("-")[0] for name in done.not_mirrored} == {"runs/topk"}
    assert set(done.not_mirrored.values()) == {"no route to host"}
    assert [line.partition(" could not")[0][:18] for line in notes] == ["mirror: runs/topk-", "mirror: 2 files or"]
    failing.fails = lambda there: False
    assert mirrored(tmp_path / "a", url)[0].not_mirrored == {}
    assert content(url / "runs") == content(tmp_path / "a" / "small" / "runs")


@pytest.mark.slow
def test_a_failure_that_passes_is_made_good(tmp_path, url, monkeypatch):
    failing = Failing(monkeypatch, lambda there: failing.n_failed < 2)
    done, notes = mirrored(tmp_path / "a", url)
    assert (done.not_mirrored, len(notes)) == ({}, 1)
    assert content(url / "runs") == content(tmp_path / "a" / "small" / "runs")


KILLED = """
import os, signal, sweeps.cli
from sweeps.storage import mirror, mirror_copying
mirror_copying.PASS_SECONDS, copy = 0.05, mirror.Mirror.copy

def copy_and_die(self, job):
    copy(self, job)
    if sum(name.startswith("runs/") for name in self._copied) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

mirror.Mirror.copy = copy_and_die
sweeps.cli.main()
"""


@pytest.mark.slow
def test_an_empty_machine_goes_on_where_a_killed_one_was_copied(tmp_path, finished, url):
    (tmp_path / "small.yaml").write_text(tiny().to_yaml())
    arguments = ["run", tmp_path / "small.yaml", "--results", tmp_path / "a", "--executor", "inline", "--mirror", url]
    assert subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, check=False).returncode == -signal.SIGKILL
    there = [path.parent.name for path in url.glob("runs/*/record.json")]
    assert len(there) == 2
    shutil.rmtree(tmp_path / "a")
    done, notes = mirrored(tmp_path / "b", url)
    assert (done.finished, done.not_mirrored, notes) == (4, {}, [fetched(2, url)])
    records = Store(tmp_path / "b" / "small").records()
    assert {run_id for run_id, record in records.items() if record.launch == 1} == {*there}  # not trained again
    assert results_of(tmp_path / "b" / "small") == results_of(finished / "results" / "small")


@pytest.mark.slow
def test_after_an_interruption_the_mirror_is_not_waited_for(tmp_path, url, monkeypatch):
    hangs = threading.Event()
    Failing(monkeypatch, lambda there: hangs.wait(20))

    class Interrupting(Notes):
        def advance_to(self, *_, **__):
            raise KeyboardInterrupt

    began = time.monotonic()
    done = launch(tiny(), results=tmp_path / "a", mirror=str(url), progress=Interrupting())
    assert done.interrupted and "sweep.json" in done.not_mirrored
    assert time.monotonic() - began < 15
    hangs.set()


@pytest.mark.slow
def test_checkpoints_are_copied_and_fetched_and_go_with_their_run(tmp_path, finished, url, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sae_core.trainable.write_result", stop)
        launch(tiny(), results=tmp_path / "a", mirror=str(url), checkpoint_seconds=0)
    assert not list(url.rglob("checkpoint.*"))  # that would take too long after an interruption
    mirror = Mirror(str(url), Store(tmp_path / "a" / "small"))
    for job in mirror.pending_checkpoints():
        mirror.copy(job)
    assert list(mirror.pending_checkpoints()) == []
    damaged = sorted(url.rglob("checkpoint.*"))[0]
    flip(damaged)
    done, notes = mirrored(tmp_path / "b", url)
    assert f"mirror: checkpoint of {damaged.parent.name} is damaged" in notes[0]
    assert notes[1:] == [f"mirror: 0 runs with a record and 1 checkpoints fetched from {url}"]
    assert (done.finished, done.not_mirrored) == (4, {})
    assert not list(url.rglob("checkpoint.*"))
    assert results_of(tmp_path / "b" / "small") == results_of(finished / "results" / "small")
