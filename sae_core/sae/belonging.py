"""Where an SAE belongs, as its files and the names of its folders say: language model and hook points. What they do not say is None.

Hook points have the names that `ModelSpec.place` knows: TransformerLens' (`blocks.3.hook_resid_post`) or paths of modules
(`model.layers.3.mlp@input`). Folders of sparsify are named by paths within the base model (`layers.3`), which is the end of such a path.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_core.files import read_json
from sae_core.layout import CFG
from sae_core.sae import dictionary_learning_files, formats, gemma_scope_files, sparsify_files

_GEMMA_SCOPE = re.compile(r"(?:google--)?gemma-scope-(?P<size>\d+b)-(?P<tuning>pt|it)-(?P<site>res|mlp|att|transcoders)")
"""Names of the repositories of Gemma Scope 1, in a path or in the cache of the Hub."""
_SITES = {
    "res": ("hook_resid_post", None),
    "mlp": ("hook_mlp_out", None),
    "att": ("attn.hook_z", None),
    "transcoders": ("ln2.hook_normalized", "hook_mlp_out"),
}
"""What is read in each, and what is written."""


@dataclass(frozen=True, slots=True)
class Belonging:
    """Where an SAE or transcoder belongs."""

    model: str | None = None
    hook_point: str | None = None
    """What it reads."""
    hook_out: str | None = None
    """What it writes, where that is elsewhere."""


def belonging(directory: Path) -> Belonging:
    """Where the SAE in a folder of any of the formats that are read belongs.

    Raises:
        ConfigError: the folder has the weights of several formats.
        Exception: whatever reading what is not such a folder raises.
    """
    reader = formats.foreign_reader(directory)
    if reader is dictionary_learning_files.read:
        return _of_dictionary_learning(read_json(directory / dictionary_learning_files.CONFIG))
    if reader is sparsify_files.read:
        return _of_sparsify(directory)
    if reader is gemma_scope_files.read_first:
        return _of_gemma_scope(directory)
    if reader is gemma_scope_files.read_second:
        config = read_json(directory / gemma_scope_files.CONFIG)
        places = (_path(config.get(f"hf_hook_point_{side}")) for side in ("in", "out"))
        return _distinct(config.get("model_name"), *places)
    cfg = read_json(directory / CFG)
    said = {**cfg, **(cfg.get("metadata") or {})}
    return _distinct(said.get("model_name"), said.get("hook_name") or said.get("hook_point"), said.get("hook_name_out"))


def _distinct(model: Any, hook_point: Any, hook_out: Any) -> Belonging:
    """Of an SAE, some programs say that it writes where it reads."""
    names = [name if isinstance(name, str) and name else None for name in (model, hook_point, hook_out)]
    return Belonging(names[0], names[1], None if names[2] == names[1] else names[2])


def _of_dictionary_learning(config: Mapping[str, Any]) -> Belonging:
    """The trainer gets whatever name its user gave to the module; `resid_post_layer_3` is that of the program's own examples."""
    trainer = config.get("trainer") or {}
    site = re.fullmatch(r"resid_post_layer_(\d+)", str(trainer.get("submodule_name")))
    return _distinct(trainer.get("lm_name"), f"blocks.{site[1]}.hook_resid_post" if site else None, None)


def _of_sparsify(directory: Path) -> Belonging:
    folder = directory.parent if re.fullmatch(r"seed\d+", directory.name) else directory
    above = folder.parent / "config.json"
    run = read_json(above) if above.is_file() else {}
    return _distinct(run.get("model"), folder.name if re.search(r"\.\d+(\.|$)", folder.name) else None, None)


def _of_gemma_scope(directory: Path) -> Belonging:
    path = f"{directory}/{directory.resolve()}"
    repo, layer = _GEMMA_SCOPE.search(path), re.search(r"layer_(\d+)", path)
    if repo is None or layer is None:
        return Belonging()
    model = f"google/gemma-2-{repo['size']}" + ("-it" if repo["tuning"] == "it" else "")
    reads, writes = _SITES[repo["site"]]
    return Belonging(model, f"blocks.{layer[1]}.{reads}", writes and f"blocks.{layer[1]}.{writes}")


def _path(name: Any) -> str | None:
    """A module's input or output as Gemma Scope 2 writes it, `model.layers.3.mlp.input`."""
    if not isinstance(name, str):
        return None
    path, _, side = name.rpartition(".")
    return {"input": f"{path}@input", "output": path}.get(side, name)
