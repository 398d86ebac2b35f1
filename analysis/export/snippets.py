"""Python of a model card: how to load exported SAEs in SAELens, here, in PyTorch alone, and for SAEBench. Tests run all of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from sae_core.layout import PARTS

PRE_ACTS = 'pre_acts = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]'
PRE_ACTS_OF_TRANSCODER = 'pre_acts = x @ w["W_enc"] + w["b_enc"]'
TOPK = "latents = torch.zeros_like(pre_acts).scatter(1, top.indices, {values})"
ENCODERS = {
    "standard": (PRE_ACTS, "latents = pre_acts.relu()"),
    "jumprelu": (PRE_ACTS, 'latents = pre_acts.relu() * (pre_acts > w["threshold"])'),
    "topk": (PRE_ACTS, "top = pre_acts.topk({k})  # k of its cfg.json", TOPK.format(values="top.values.relu()")),
    "abstopk": (PRE_ACTS, "top = pre_acts.abs().topk({k})  # k of its cfg.json", TOPK.format(values="pre_acts.gather(1, top.indices)")),
    "gated": (
        'products = (x - w["b_dec"]) @ w["W_enc"]',
        'latents = (products + w["b_gate"] > 0) * (products * w["r_mag"].exp() + w["b_mag"]).relu()',
    ),
    "matching_pursuit": (
        'latents, residual = x.new_zeros(len(x), len(w["W_dec"])), x - w["b_dec"]',
        "for _ in range({k}):  # max_iterations of its cfg.json",
        '    value, best = (residual @ w["W_dec"].T).relu().max(dim=1)',
        "    latents[torch.arange(len(x)), best] += value",
        '    residual = residual - value[:, None] * w["W_dec"][best]',
    ),
    "transcoder": (PRE_ACTS_OF_TRANSCODER, "latents = pre_acts.relu()"),
    "jumprelu_transcoder": (PRE_ACTS_OF_TRANSCODER, 'latents = pre_acts.relu() * (pre_acts > w["threshold"])'),
}
"""What `cfg.json` calls an architecture -> lines that make `latents` of `x` and weights `w`; with `skip_` in its name it is the same."""


def uses_of(folders: Sequence[str], cfgs: Sequence[Mapping[str, Any]], repo: str | None) -> list[dict[str, str]]:
    """Ways to load the SAEs: `name`, `text` and `code` of each. Those that a library does not know are left out of it.

    Args:
        folders: names of their folders.
        cfgs: their cfg.json, in the same order.
        repo: where on the Hub they lie; None: the code is to run where the folders are.
    """
    from analysis.best import IN_SAELENS

    known = [folder for folder, cfg in zip(folders, cfgs, strict=True) if cfg.get("architecture") in IN_SAELENS]
    uses = [{"name": "SAELens", "text": _but(folders, known), "code": _saelens(known[0], repo)}] if known else []
    uses.append({"name": "sae-sweep", "text": "", "code": _ours(folders[0], repo)})
    first: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for folder, cfg in zip(folders, cfgs, strict=True):
        if _encoder(cfg):
            first.setdefault(str(cfg["architecture"]), (folder, cfg))
    for architecture, (folder, cfg) in first.items():
        name = "PyTorch alone" if len(first) == 1 else f"PyTorch alone: {architecture}"
        uses.append({"name": name, "text": "", "code": _plain(folder, cfg, repo)})
    benched = [folder for folder, cfg in zip(folders, cfgs, strict=True) if _fits_saebench(cfg)]
    if benched:
        text = "An object with what SAEBench asks of custom SAEs, decoder norms folded to 1; pass it in `selected_saes`."
        uses.append({"name": "SAEBench", "text": text, "code": _saebench(benched[0], repo)})
    return uses


def _but(folders: Sequence[str], known: Sequence[str]) -> str:
    unknown = [folder for folder in folders if folder not in known]
    return f"It does not know the architecture of {', '.join(f'`{folder}`' for folder in unknown)}." if unknown else ""


def _place(folder: str, repo: str | None) -> str:
    """As sae-sweep names it."""
    return folder if repo is None else f"hub:{repo}/{folder}"


def _saelens(folder: str, repo: str | None) -> str:
    load = f'SAE.load_from_disk("{folder}")' if repo is None else f'SAE.from_pretrained("{repo}", "{folder}")'
    return f"from sae_lens import SAE\n\nsae = {load}\nlatents, x_hat = sae.encode(x), sae(x)"


def _ours(folder: str, repo: str | None) -> str:
    return (
        "from sae_core import SparseAutoencoder\n\n"
        f'sae = SparseAutoencoder.from_pretrained("{_place(folder, repo)}")\nlatents, x_hat = sae.reconstruct(x)'
    )


def _saebench(folder: str, repo: str | None) -> str:
    load = f'sae = for_saebench("{_place(folder, repo)}")\nselected_saes = [("{folder}", sae)]'
    return f"from sae_core.sae.saebench import for_saebench\n\n{load}"


def _encoder(cfg: Mapping[str, Any]) -> tuple[str, ...]:
    """Lines that make latents; none of architectures that are not known, nor of a matching pursuit that stops early."""
    if cfg.get("residual_threshold") or cfg.get("stop_on_duplicate_support"):
        return ()
    return ENCODERS.get(str(cfg.get("architecture")).replace("skip_", ""), ())


def _plain(folder: str, cfg: Mapping[str, Any], repo: str | None) -> str:
    """PyTorch that computes latents and the reconstruction."""
    encoder = _encoder(cfg)
    file = f'"{folder}/sae_weights.safetensors"' if repo is None else f'hf_hub_download("{repo}", "{folder}/sae_weights.safetensors")'
    is_normed = cfg.get("normalize_activations") == "layer_norm"
    skip = ' + x @ w["W_skip"].T' if "skip_" in str(cfg["architecture"]) else ""
    needs_torch = any("torch." in line for line in encoder)
    lines = [
        *(["import torch"] if needs_torch else []),
        *([] if repo is None else ["from huggingface_hub import hf_hub_download"]),
        "from safetensors.torch import load_file",
        "",
        f"w = load_file({file})",
        *(["mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True)", "x = (x - mean) / (std + 1e-5)"] if is_normed else []),
        *(line.replace("{k}", str(cfg.get("k", cfg.get("max_iterations")))) for line in encoder),
        f'x_hat = latents @ w["W_dec"] + w["b_dec"]{skip}',
        *(["x_hat = x_hat * std + mean"] if is_normed else []),
    ]
    return "\n".join(lines)


def _fits_saebench(cfg: Mapping[str, Any]) -> bool:
    """SAEBench takes SAEs of language models, one function for encoding and one for decoding: no transcoders, crosscoders or layer norm."""
    metadata = cfg.get("metadata") or {}
    has_layer = any(character.isdigit() for character in str(metadata.get("hook_name")))
    is_sae = "d_out" not in cfg and PARTS not in metadata
    return is_sae and cfg.get("normalize_activations") != "layer_norm" and bool(metadata.get("model_name")) and has_layer
