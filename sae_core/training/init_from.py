"""Runs that start from an SAE that there is, instead of random weights.

It is in inference form and for activations as they are; it becomes a training form, in normalized units: the new SAE takes over every
parameter that it has by the same name, after the normalization was undone. So it reconstructs what the old one did, up to rounding, where
both select latents alike; where they do not (another k, another architecture), it has the same dictionary and the same pre-activations.
What the old one lacks (thresholds) starts as in a new one.
Shape letters: d_in width of the activations, d_out of what transcoders reconstruct from them, d_sae latents.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from sae_core.config.run import ARCHITECTURES, RunConfig
from sae_core.errors import ConfigError
from sae_core.files import state_of
from sae_core.layout import OF_RUN, RunPaths
from sae_core.sae.base import SparseAutoencoder
from sae_core.sae.hub import located
from sae_core.sae.normalization import Normalization
from sae_core.sae.saelens_files import RESCALED

RUN_ID = re.compile(rf"\w+-[0-9a-f]{{12}}({OF_RUN}.+)?")
"""Ids of runs and of their variants."""
_OPTIONAL = frozenset({"threshold", "W_skip"})
"""Parameters that an SAE may lack which another one starts from: thresholds start as in a new SAE, a skip connection at 0."""
_DROPPED = frozenset({"threshold"})
"""Parameters that the new SAE may lack: it selects latents in another way."""
_NORMS = (
    "`rescale_acts_by_decoder_norm` must be false for a start from a TopK SAE whose decoder rows have different norms, since it would "
    "select other latents, but got true. Set it to false"
)
_SAME_NORMS = 1e-3
"""Largest relative difference of decoder norms that are alike."""


@dataclass(frozen=True, slots=True)
class Start:
    """What can be said of an SAE without its weights."""

    architecture: str
    d_in: int
    d_out: int | None
    d_sae: int
    widths: list[int]
    """Of the hook points of a crosscoder; none of an SAE of one."""
    parameters: frozenset[str]
    layer_norm: bool
    norms_differ: bool
    """Whether its decoder rows have different norms."""
    content: str
    """`content_hash` of the SAE."""


def is_run_id(name: str) -> bool:
    """Whether `init_from` names a run, or a variant of one, whose id stands for its content."""
    return RUN_ID.fullmatch(name) is not None


def start_directory(name: str, runs: Path | None) -> Path:
    """Directory of the SAE that `init_from` names.

    Args:
        runs: directory of the runs of a sweep; other sweeps lie beside it. None: no run can be named.

    Raises:
        ConfigError: there is none.
    """
    if not is_run_id(name):
        return located(name)
    run_id, _, variant = name.partition(OF_RUN)
    for directory in [runs, *sorted(runs.parent.parent.glob(f"*/{runs.name}"))] if runs else []:
        paths = RunPaths(directory / run_id)
        if (sae := (paths.variant(variant) if variant else paths).sae).is_dir():
            return sae
    where = f"there is none under {str(runs.parent.parent)!r}" if runs else "no results directory was given"
    raise ConfigError(f"`init_from` must name a run that left its SAE, but got {name!r}, and {where}. Train it first, or give a directory.")


def start_of(directory: Path) -> Start:
    """Facts of the SAE in a directory of any format that is read. Read again only where a file of it has changed.

    Raises:
        ConfigError: it cannot be read.
    """
    return _start(directory, tuple((path.name, state_of(path)) for path in sorted(directory.iterdir()) if path.is_file()))


@lru_cache(1024)
def _start(directory: Path, _: object) -> Start:
    return _facts(SparseAutoencoder.from_pretrained(directory))


def _facts(sae: SparseAutoencoder) -> Start:
    names, widths = frozenset(name for name, _ in sae.named_parameters()), list(sae.parts.values())
    sizes = (sae.d_in, sae.d_out, sae.d_sae)
    return Start(sae.config.architecture, *sizes, widths, names, sae.layer_norm, _norms_differ(sae), sae.content_hash())


def _norms_differ(sae: SparseAutoencoder) -> bool:
    norms = sae.decoder_norms().detach()
    norms = norms[norms > 0]  # a row of zeros decodes to nothing, whatever its norm
    return len(norms) > 0 and bool(norms.max() > (1 + _SAME_NORMS) * norms.min())


def check_start(run: RunConfig, d_in: int, d_out: int | None, parts: Mapping[str, int], runs: Path | None) -> None:
    """Make sure that a run can start from what its `init_from` names; nothing, where it names nothing.

    Args:
        d_in: width of the activations that it is trained on.
        d_out: width of what it reconstructs; None for an SAE.
        parts: hook point -> width, of a crosscoder.
        runs: as for `start_directory`.

    Raises:
        ConfigError: with every problem, one per line.
    """
    if (name := run.train.init_from) is None:
        return
    start, sae, layer_norm = start_of(start_directory(name, runs)), run.sae, run.train.normalize_activations == "layer_norm"
    sizes = {
        "d_in": (start.d_in, d_in),
        "d_out": (start.d_out, d_out),
        "d_sae": (start.d_sae, sae.d_sae),
        "widths of hook points": (start.widths, list(parts.values())),
    }
    problems = [
        f"`init_from` must have the {size} of the run, {ours}, but got {theirs}" for size, (theirs, ours) in sizes.items() if theirs != ours
    ]
    if start.layer_norm != layer_norm:
        problems.append(
            "`init_from` must be for activations that are normalized as the run's, but got one "
            f"{'for layer-normed tokens' if start.layer_norm else 'that no layer norm comes before'} and "
            f"normalize_activations={run.train.normalize_activations!r}. Change `train.normalize_activations`"
        )
    wanted = frozenset(ARCHITECTURES[sae.architecture].parameter_names(sae))
    missing, left_over = wanted - start.parameters - _OPTIONAL, start.parameters - wanted - _DROPPED
    if missing or left_over:
        what = f"lacks {sorted(missing)}" if missing else f"has no place for {sorted(left_over)}"
        problems.append(
            f"`init_from` must have the weights of a {sae.architecture!r} SAE, but got one of {start.architecture!r}, which {what}"
        )
    if start.norms_differ and not parts and run.train.normalize_activations != "whitening" and _is_rescaled(run, start.architecture):
        problems.append(_NORMS)  # others change with the normalization
    if run.init_hash not in (None, start.content):
        problems.append(f"`init_from` must be the SAE that the run was made for, but its content has changed to {start.content[:12]}")
    if problems:
        raise ConfigError("\n".join(f"{problem}, for {run.sae.architecture!r} from {name!r}." for problem in problems))


def _is_rescaled(run: RunConfig, architecture: str) -> bool:
    """Whether decoder norms decide which latents are active, where they did not."""
    return getattr(run.sae, "rescale_acts_by_decoder_norm", False) and architecture in RESCALED


@torch.no_grad()
def start_from(sae: SparseAutoencoder, run: RunConfig, normalization: Normalization, runs: Path | None) -> None:
    """Give a new SAE in training form the weights of the one that the run's `init_from` names, in the units of training. In place.

    Raises:
        ConfigError: as `check_start`.
    """
    assert run.train.init_from is not None, f"{run.run_id=}"
    check_start(run, sae.d_in, sae.d_out, sae.parts, runs)
    stored = SparseAutoencoder.from_pretrained(start_directory(run.train.init_from, runs)).to(sae.W_dec.device)
    stored.unfold(normalization)
    if _is_rescaled(run, stored.config.architecture) and _norms_differ(stored):
        raise ConfigError(f"{_NORMS}, for {run.sae.architecture!r} from {run.train.init_from!r}.")
    theirs = dict(stored.named_parameters())
    for name, parameter in sae.named_parameters():
        if name in theirs:
            parameter.copy_(theirs[name])
    given = [parameter.clone() for parameter in sae.parameters()]
    sae.constrain()
    if not all(torch.allclose(one, other, rtol=_SAME_NORMS, atol=1e-4) for one, other in zip(sae.parameters(), given, strict=True)):
        what = "decoder rows of norm 1" + (", aligned with the encoder" if run.sae.aligned else "")
        raise ConfigError(
            f"`init_from` must have {what}, in units of training, since the run holds that, but got others in {run.train.init_from!r}. "
            "Start from an SAE that was trained so, or do not hold it."
        )
