import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_runs import D_IN, D_OUT, D_SAE, heldout, pairs_of, random_sae, run_of, stream_of, tokens
from small_sweep import result_of, small_sweep

from sae_core.activations.stream import TensorStream
from sae_core.config.run import ARCHITECTURES, ArchitectureConfig, RunConfig
from sae_core.errors import ConfigError
from sae_core.sae.base import SparseAutoencoder
from sae_core.sae.normalization import Normalization
from sae_core.training.init_from import check_start, is_run_id, start_directory, start_from, start_of
from sae_core.training.loop import Learner, train_group, train_run
from sweeps.execution.launcher import launch
from sweeps.planning.plan import plan

NAMES = list(ARCHITECTURES)
SAMES: list[tuple[str, str]] = [(name, name) for name in NAMES]
"""Trained as, and started as: pairs that select latents alike."""
OTHERS = [("batchtopk", "jumprelu"), ("matryoshka_batchtopk", "batchtopk"), ("hierarchical_topk", "topk"), ("p_anneal", "standard")]


def saved(sae: SparseAutoencoder, normalization: Normalization, directory: Path) -> Path:
    """The directory of an SAE, in inference form and for activations as they are, that was trained in normalized units."""
    for name, buffer in sae.named_buffers():
        if name == "threshold":
            buffer.fill_(0.1)
    exported = sae.to_inference()
    exported.fold(normalization)
    exported.save_pretrained(directory)
    return directory


def started(run: RunConfig, stream: TensorStream) -> SparseAutoencoder:
    """The SAE of a run before its first step."""
    sae = Learner.start(run, stream.d_in, torch.device("cpu"), stream.d_out).sae
    start_from(sae, run, stream.normalization, None)
    return sae


def reconstructed(sae: SparseAutoencoder, normalization: Normalization, x: torch.Tensor) -> torch.Tensor:
    """By the inference form, with the thresholds of `saved` where training has none."""
    for name, buffer in sae.named_buffers():
        if name == "threshold":
            buffer.fill_(0.1)
    inference = sae.to_inference()
    inference.fold(normalization)
    return inference(x).detach()


@pytest.mark.parametrize("normalization", ["expected_norm", "whitening", "none", "layer_norm"])
@pytest.mark.parametrize(("trained", "asked"), SAMES + OTHERS)
def test_a_run_starts_with_the_reconstruction_of_what_it_starts_from(trained: str, asked: str, normalization: str, tmp_path: Path) -> None:
    old = random_sae(trained, D_IN, D_SAE)
    old.constrain()
    if normalization == "whitening" and old.config.is_tied:
        pytest.skip("nothing is trained so")
    run = run_of(asked, normalize_activations=normalization, init_from=str(tmp_path))
    stream, x = stream_of(run), heldout(256)
    saved(old, stream.normalization, tmp_path)
    new = started(run, stream)
    expected, found = SparseAutoencoder.from_pretrained(tmp_path)(x).detach(), reconstructed(new, stream.normalization, x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert new.training


@pytest.mark.parametrize("name", [name for name in NAMES if ARCHITECTURES[name].transcodes])
@pytest.mark.parametrize("skips", [False, True])
def test_transcoders_start_from_transcoders(name: str, skips: bool, tmp_path: Path) -> None:
    sae = ARCHITECTURES[name].Config.example(D_IN, D_SAE).model_copy(update={"skip_connection": skips})
    run = run_of(sae, normalize_activations="whitening", init_from=str(tmp_path))
    stream, x = pairs_of(run), heldout(256)
    saved(random_sae(name, D_IN, D_SAE, d_out=D_OUT, skip_connection=skips), stream.normalization, tmp_path)
    expected = SparseAutoencoder.from_pretrained(tmp_path)(x).detach()
    torch.testing.assert_close(reconstructed(started(run, stream), stream.normalization, x), expected, rtol=1e-3, atol=1e-3)


def test_on_activations_of_another_scale_it_is_the_same_function(tmp_path: Path) -> None:
    run = run_of("topk", init_from=str(tmp_path))
    saved(random_sae("topk", D_IN, D_SAE), stream_of(run).normalization, tmp_path)
    elsewhere = TensorStream(3 * tokens(1024) + 1, batch_size=64)
    x = 3 * heldout(256) + 1
    found = reconstructed(started(run, elsewhere), elsewhere.normalization, x)
    torch.testing.assert_close(found, SparseAutoencoder.from_pretrained(tmp_path)(x).detach(), rtol=1e-4, atol=1e-4)


def test_another_l0_keeps_the_dictionary(tmp_path: Path) -> None:
    run = run_of(ARCHITECTURES["topk"].Config(d_sae=D_SAE, k=3), init_from=str(tmp_path))
    stream, x = stream_of(run), heldout(256)
    saved(random_sae("topk", D_IN, D_SAE), stream.normalization, tmp_path)
    new, old = started(run, stream).to_inference(), SparseAutoencoder.from_pretrained(tmp_path)
    new.fold(stream.normalization)
    torch.testing.assert_close(new.W_dec, old.W_dec)
    theirs, ours = old.encode(x), new.encode(x)
    assert int((ours != 0).sum(dim=1).max()) == 3
    torch.testing.assert_close(ours, theirs * (theirs >= theirs.topk(3, dim=1).values[:, -1:]), rtol=1e-4, atol=1e-4)


def test_folders_of_other_programs_are_started_from(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn(D_SAE, D_IN, generator=generator))
    b_dec = 0.1 * torch.randn(D_IN, generator=generator)
    save_file(
        {"encoder.weight": W_dec.clone(), "encoder.bias": torch.zeros(D_SAE), "W_dec": W_dec, "b_dec": b_dec}, tmp_path / "sae.safetensors"
    )
    (tmp_path / "cfg.json").write_text(json.dumps({"activation": "topk", "k": 8, "num_latents": D_SAE, "d_in": D_IN}))
    run, x = run_of("topk", init_from=str(tmp_path)), heldout(256)
    stream = stream_of(run)
    expected = SparseAutoencoder.from_pretrained(tmp_path)(x).detach()
    torch.testing.assert_close(reconstructed(started(run, stream), stream.normalization, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("stored", "sae", "train", "message"),
    [
        ("topk", ARCHITECTURES["topk"].Config(d_sae=32, k=4), {}, "`init_from` must have the d_sae of the run, 32, but got 64"),
        ("gated", "topk", {}, r"weights of a 'topk' SAE, but got one of 'gated', which lacks \['b_enc'\]"),
        ("topk", "gated", {}, r"weights of a 'gated' SAE, but got one of 'topk', which lacks \['b_gate', 'b_mag', 'r_mag'\]"),
        ("topk", "topk", {"normalize_activations": "layer_norm"}, "no layer norm comes before and normalize_activations='layer_norm'"),
    ],
)
def test_what_cannot_be_started_from_is_refused_by_name(
    stored: str, sae: str | ArchitectureConfig, train: dict[str, Any], message: str, tmp_path: Path
) -> None:
    run = run_of(sae, init_from=str(tmp_path), **train)
    saved(random_sae(stored, D_IN, D_SAE), stream_of(run_of("topk")).normalization, tmp_path)
    with pytest.raises(ConfigError, match=message):
        check_start(run, D_IN, None, {}, None)
    with pytest.raises(ConfigError, match="`init_from` must have the d_in of the run, 8, but got 16"):
        check_start(run, 8, None, {}, None)


def test_norms_that_would_select_other_latents_are_refused(tmp_path: Path) -> None:
    old = random_sae("topk", D_IN, D_SAE, rescale_acts_by_decoder_norm=False)
    saved(old, stream_of(run_of("topk")).normalization, tmp_path)
    with pytest.raises(ConfigError, match=r"`rescale_acts_by_decoder_norm` must be false .*, but got true\. Set it to false"):
        check_start(run_of("topk", init_from=str(tmp_path)), D_IN, None, {}, None)
    same = ARCHITECTURES["topk"].Config(d_sae=D_SAE, k=8, rescale_acts_by_decoder_norm=False)
    check_start(run_of(same, init_from=str(tmp_path)), D_IN, None, {}, None)


def test_content_that_has_changed_is_refused(tmp_path: Path) -> None:
    normalization = stream_of(run_of("topk")).normalization
    content = start_of(saved(random_sae("topk", D_IN, D_SAE), normalization, tmp_path)).content
    run = run_of("topk", init_from=str(tmp_path)).model_copy(update={"init_hash": content})
    check_start(run, D_IN, None, {}, None)
    saved(random_sae("topk", D_IN, D_SAE, seed=1), normalization, tmp_path)
    with pytest.raises(ConfigError, match="must be the SAE that the run was made for, but its content has changed to"):
        check_start(run, D_IN, None, {}, None)
    assert run.run_id != run.model_copy(update={"init_hash": start_of(tmp_path).content}).run_id


def test_names_of_runs_are_told_from_directories(tmp_path: Path) -> None:
    assert is_run_id("topk-0123456789ab") and is_run_id("matryoshka_batchtopk-0123456789ab@tokens-6400")
    assert not is_run_id("./topk-0123456789ab") and not is_run_id("hub:user/topk-0123456789ab")
    with pytest.raises(ConfigError, match="must name a run that left its SAE, but got 'topk-0123456789ab', and there is none under"):
        start_directory("topk-0123456789ab", tmp_path / "sweep" / "runs")
    (tmp_path / "other" / "runs" / "topk-0123456789ab" / "sae").mkdir(parents=True)
    assert start_directory("topk-0123456789ab", tmp_path / "sweep" / "runs").parts[-4:] == ("other", "runs", "topk-0123456789ab", "sae")


@pytest.mark.slow
def test_packed_is_alone_and_resumed_is_uninterrupted(tmp_path: Path) -> None:
    stream = stream_of(run_of("topk"))
    saved(random_sae("topk", D_IN, D_SAE), stream.normalization, tmp_path / "old")
    runs = [run_of(name, init_from=str(tmp_path / "old")) for name in ("topk", "batchtopk")]

    class Interrupted(BaseException):
        pass

    def interrupt(learners: Any) -> None:
        if learners[0].step == 7:
            raise Interrupted

    with pytest.raises(Interrupted):
        train_group(runs, stream, directory=tmp_path, checkpoint_seconds=0, on_step=interrupt)
    for run, resumed in zip(runs, train_group(runs, stream, directory=tmp_path), strict=True):
        alone = train_run(run, stream)
        assert resumed.sae is not None and alone.sae is not None and resumed.history == alone.history
        assert all(torch.equal(value, alone.sae.state_dict()[key]) for key, value in resumed.sae.state_dict().items())


def test_repeats_of_what_starts_from_an_sae_are_orders_of_the_tokens() -> None:
    """With two seeds it would be trained twice alike, and an interval over seeds would have no width."""
    fields: dict[str, Any] = {"train": {"batch_size": 256, "init_from": [None, "topk-0123456789ab"]}, "architectures": {"topk": {"k": 2}}}
    rule = r"(?s)^seeds: there must be one seed where a run starts from an SAE.*got \[0, 1\] and.*`data_seed: \[0, 1\]`\.$"
    with pytest.raises(ConfigError, match=rule):
        small_sweep(seeds=[0, 1], **fields).runs()
    assert len(small_sweep(data_seed=[0, 1], seeds=[0], **fields).runs()) == 4
    fields["train"] |= {"resample_every_steps": 10, "dead_after_tokens": 256}
    assert len(small_sweep(seeds=[0, 1], **fields).runs()) == 4


def test_rows_of_norm_1_may_be_asked_for_in_both_places() -> None:
    train = {"batch_size": 256, "init_from": "topk-0123456789ab"}
    assert small_sweep(train=train, architectures={"topk": {"k": 2, "aligned": True, "decoder_init_norm": 1.0}}).runs()
    with pytest.raises(ConfigError, match="`decoder_init_norm` must come with a new SAE, without `init_from`, or it has no effect"):
        small_sweep(train=train, architectures={"topk": {"k": 2, "decoder_init_norm": 0.5}}).runs()


@pytest.mark.slow
def test_a_definition_names_directories_and_their_content_decides_run_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    normalization = stream_of(run_of("topk")).normalization
    saved(random_sae("topk", D_IN, 48), normalization, tmp_path / "old")
    monkeypatch.chdir(tmp_path)
    train = {"batch_size": 256, "init_from": [None, "old"]}
    sweep = small_sweep(train=train, architectures={"topk": {"k": [2, 4]}})
    fresh, old = [[run for run in sweep.runs() if (run.train.init_from is None) == is_new] for is_new in (True, False)]
    assert [run.train.init_from for run in old] == [str(tmp_path / "old")] * 2
    assert all(run.init_hash == start_of(tmp_path / "old").content for run in old) and not any(run.init_hash for run in fresh)
    assert str(tmp_path / "old") in sweep.to_yaml()
    saved(random_sae("topk", D_IN, 48, seed=1), normalization, tmp_path / "old")
    again = {run.run_id for run in sweep.runs()}
    assert {run.run_id for run in fresh} <= again and not {run.run_id for run in old} & again


def test_problems_are_found_before_work(tmp_path: Path) -> None:
    def sweep(**changes: Any) -> Any:
        return small_sweep(architectures={"topk": {"k": 2}}, **changes)

    with pytest.raises(ConfigError, match=r"train\.init_from: an SAE must be an existing directory, .* but got '.*/nowhere'"):
        sweep(train={"init_from": str(tmp_path / "nowhere")}).runs()
    with pytest.raises(ConfigError, match="must name a run that left its SAE, but got 'topk-0123456789ab'"):
        plan(sweep(train={"init_from": "topk-0123456789ab"}), tmp_path, 1)
    with pytest.raises(ConfigError, match=r"sae\.decoder_init: `decoder_init` must come with a new SAE, without `init_from`"):
        sweep(sae={"d_sae": 48, "decoder_init": "data"}, train={"init_from": "topk-0123456789ab"}).runs()


@pytest.mark.slow
def test_a_sweep_fine_tunes_a_run_of_another_one(tmp_path: Path) -> None:
    train = {"batch_size": 512}
    first = small_sweep(train=train, architectures={"topk": {"k": 4}})
    launch(first, results=tmp_path, executor="inline")
    (old,) = first.runs()
    tuned = small_sweep(name="tuned", train={**train, "init_from": old.run_id, "lr": 1e-9}, architectures={"topk": {"k": 4}})
    assert launch(tuned, results=tmp_path, executor="inline").finished == 1
    (new,) = tuned.runs()
    before, after = (result_of(tmp_path / name / "runs" / run.run_id)[3] for name, run in (("small", old), ("tuned", new)))
    assert after["fvu"] == pytest.approx(before["fvu"], rel=1e-4)
