"""Definitions and settings, broken in a thousand ways: runs or one ConfigError come out of each, soon, and nothing else.

The examples are the same each time, so that a change is judged by its own faults. `make fuzz` tries others, and what it finds is kept here
as an `@example`.
"""

import contextlib
import copy
import math
import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mutations import mutated, odd_values
from typer.testing import CliRunner

from sae_core.errors import ConfigError
from sweeps.cli import app
from sweeps.definition.sweep import Sweep
from sweeps.definition.text import dump_yaml, load_text

pytestmark = pytest.mark.slow

GRID = {
    "name": "small",
    "model": {"name": "demo", "hook_point": "blocks.2.hook_resid_post", "context_size": 64},
    "data": {"dataset": "demo", "text_column": "text", "train_tokens": 100_000, "eval_tokens": 1_000},
    "sae": {"d_sae": [64, 128], "decoder_init_norm": "search"},
    "train": {"lr": [1e-3, 4e-3], "lr_warm_up": "10 steps", "batch_size": 512, "lr_factors": {"b_dec": 0.5}},
    "architectures": {
        "topk": {"k": [8, 16], "k_start": 32},
        "matryoshka_batchtopk": {"k": 8, "matryoshka_widths": [[16], [16, 32]]},
        "standard": None,
    },
    "zip": [["sae.d_sae", "train.lr"]],
    "seeds": [0, 1],
    "data_seed": [0, 1],
    "early_stopping": {"rungs": [0.3, 0.6], "l0_band": 2.0},
    "wandb": {"mode": "offline"},
}
SEARCH = {
    "name": "small",
    "activations": {"source": "synthetic", "d_in": 16, "n_features": 32, "train_tokens": 10_000, "eval_tokens": 1_000},
    "sae": {"d_sae": [32, 64]},
    "train": {"lr": {"low": 1e-3, "high": 3e-2, "log": True}, "batch_size": 256},
    "target_l0": {"low": 2, "high": 15, "step": 4},
    "architectures": {"topk": {}, "jumprelu": {"bandwidth": {"low": 0.1, "high": 1.0}}},
    "seeds": [0],
    "search": {"trials": 10, "objectives": ["l0", "fvu"], "points_to_evaluate": [{"architectures": "topk", "sae.d_sae": 64}]},
}
PLACES = ["name", "train.lr", "train.lr_warm_up", "architectures.topk.k", "sae.d_sae", "target_l0", "seeds", "data_seed", "search.trials"]
PLACES += ["zip"]
PLACES += ["search", "early_stopping.rungs", "model.name", "data.dataset", "activations", "architectures", "train", "a.b.c", "seeds.0", ""]
MOST_SECONDS = 1.0


@pytest.fixture(scope="module", autouse=True)
def imported():
    """The definitions are valid as they are. Libraries are imported for that, which is not the time of an example."""
    for definition in (GRID, SEARCH):
        sweep = Sweep.from_dict(copy.deepcopy(definition))
        assert sweep.space() if sweep.search else sweep.runs()


def examples(n_examples):
    return settings(max_examples=n_examples, print_blob=True, suppress_health_check=list(HealthCheck))


def check(make):
    """Runs or one ConfigError, in a second, and a message that any terminal can show."""
    start = time.process_time()
    try:
        sweep = make()
        found = sweep.runs() if sweep.search is None else sweep.space().corners
        assert found
        again = Sweep.from_dict(load_text(sweep.to_yaml(), "again"))
        assert sweep.search is not None or [run.run_id for run in again.runs()] == [run.run_id for run in found]
    except ConfigError as error:
        message = str(error)
        assert message
        assert len(message.splitlines()) == message.count("\n") + 1 <= 101
        assert all(line.isprintable() and 0 < len(line) < 2_000 for line in message.split("\n")), message
        message.encode()
    assert time.process_time() - start < MOST_SECONDS


@examples(450)
@given(mutated(GRID))
def test_mutated_grids(definition):
    check(lambda: Sweep.from_dict(definition))


@examples(350)
@given(mutated(SEARCH))
@example(SEARCH | {"target_l0": math.nan})
@example(SEARCH | {"target_l0": math.inf, "sae": {"d_sae": "wide"}})
@example(SEARCH | {"target_l0": 10**400})
def test_mutated_searches(definition):
    check(lambda: Sweep.from_dict(definition))


@examples(200)
@given(st.sampled_from([GRID, SEARCH]), st.lists(st.tuples(st.sampled_from(PLACES), odd_values() | st.text(max_size=30)), max_size=3))
def test_mutated_settings(definition, given_settings):
    overrides = []
    for place, value in given_settings:
        text = str(value)[:50] if isinstance(value, str) else ""
        if not isinstance(value, str):
            with contextlib.suppress(ValueError, RecursionError, UnicodeEncodeError):  # what YAML cannot hold
                text = dump_yaml(value)
        overrides.append(f"{place}={text}")
    check(lambda: Sweep.from_dict(definition, overrides))


TEXT = b"""# A comment.
name: small
activations: {source: synthetic, d_in: 16, train_tokens: 1_000, eval_tokens: 1e3}
sae: &common
  d_sae: [64, 128]   # latents
train: {lr: [1e-3, .5], batch_size: 256, lr_warm_up: "2 steps"}
architectures:
  topk: {k: [8, 16]}
  standard: {<<: *common, l1_coefficient: 0.5}
seeds:
  - 0
  - 1
"""
PIECES = [
    b"&a ",
    b"*a",
    b"<<: *common",
    b"!!binary ",
    b"!x ",
    b"---\n",
    b"...\n",
    b"\xef\xbb\xbf",
    b"\xff",
    b"\x00",
    b"\xed\xa0\x80",
    b"\t",
    b"\r\n",
]
PIECES += [
    b"{",
    b"}",
    b"[",
    b"]",
    b": ",
    b"- ",
    b"? ",
    b"| ",
    b"> ",
    b"'",
    b'"',
    b"%YAML 1.2\n",
    b".inf",
    b".nan",
    b"1e999",
    b"9" * 5_000,
    b"[" * 3_000,
]


@st.composite
def mutated_texts(draw):
    """The bytes of a definition with some replaced, removed, repeated or put in."""
    text = bytearray(TEXT)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        length = draw(st.sampled_from([0, 0, 1, 1, 2, 10, 100]))
        text[start : start + length] = draw(
            st.sampled_from([*PIECES, b"", bytes(text[start : start + length]) * 2]) | st.binary(max_size=3)
        )
    return bytes(text)


@examples(200)
@given(mutated_texts())
@example(TEXT)
@example(TEXT.replace(b"*common", b"*" + b"9" * 5_000))  # PyYAML names an alias that it does not know, whole
@example(b"[" * 3_000 + TEXT)
@example(
    b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(b"%c: &%c [%b]\n" % (c, c, b", ".join([b"*%c" % (c - 1)] * 9)) for c in b"bcdefghijk")
)
@example(b"a: &a {x: 1}\n" + b"".join(b"%c: &%c {<<: [%b]}\n" % (c, c, b", ".join([b"*%c" % (c - 1)] * 9)) for c in b"bcdefghijk"))
def test_mutated_texts_on_the_command_line(tmp_path_factory, text):
    directory = tmp_path_factory.getbasetemp()
    file = directory / "mutated.yaml"
    file.write_bytes(text)
    start = time.process_time()
    done = CliRunner().invoke(app, ["plan", str(file), "--results", str(directory / "results")])
    assert time.process_time() - start < MOST_SECONDS
    assert done.exit_code in (0, 2), done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    assert all(line.isprintable() and len(line) < 2_000 for line in done.stderr.splitlines())
    assert bool(done.stderr) == (done.exit_code == 2) and "Traceback" not in done.output
