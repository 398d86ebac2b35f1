"""Memory and time of a page of latents (`sae-sweep features`) of a very wide SAE.

    python benchmarks/features.py                    # d_sae 65,536 on a random GPT-NeoX of width 512; about five minutes

A random TopK SAE stands in for a trained one: what a page costs depends on its size and on how many latents are active on a token. The
held-out text is the demo's. Peak memory is that of the whole process, libraries and language model included.
"""

import argparse
import dataclasses
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measuring import RESULTS, console, write_result
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig

from analysis.features.content import most_written, page_content
from analysis.features.page import write_page
from analysis.features.run import LearnedRun
from sae_core.activations.language_model.source import LanguageModelActivations, LanguageModelSource
from sae_core.config.run import ARCHITECTURES
from sae_core.sae.base import SparseAutoencoder
from sweeps.demo.corpus import demo_text, model_directory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-sae", type=int, default=65_536)
    parser.add_argument("--d-model", type=int, default=512)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--latents", type=int, default=50)
    parser.add_argument("--compare", action="store_true", help="with the counterparts in a second SAE as wide")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        run = learned(Path(directory), arguments)
        results = measured(run, Path(directory), arguments)
    name = "features_compared" if arguments.compare else "features"
    console().print(results)
    write_result(arguments.out, name, {**{key: value for key, value in vars(arguments).items() if key != "out"}, **results})


def learned(directory: Path, arguments: argparse.Namespace) -> LearnedRun:
    """A run as `sweeps.open_run` gives it."""
    model = directory / "model"
    sizes = {"hidden_size": arguments.d_model, "intermediate_size": 4 * arguments.d_model}
    config = GPTNeoXConfig(num_hidden_layers=4, num_attention_heads=8, max_position_embeddings=128, vocab_size=4096, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(model)
    AutoTokenizer.from_pretrained(model_directory()).save_pretrained(model)
    activations = LanguageModelActivations.model_validate(
        {
            "model": {"name": str(model), "hook_point": "blocks.2.hook_resid_post"},
            "data": {"dataset": str(demo_text(directory))},
            "train_tokens": 1_000,
            "eval_tokens": arguments.tokens,
        }
    )
    source = LanguageModelSource(activations)
    source.prepare(directory)
    return LearnedRun("topk", "wide", random_sae(arguments, 0), source, directory, {"l0": float(arguments.k)})


def random_sae(arguments: argparse.Namespace, seed: int) -> SparseAutoencoder:
    """Loaded as `sweeps.open_run` does; another process makes it, whose memory does not count."""
    with tempfile.TemporaryDirectory() as directory:
        maker = multiprocessing.get_context("spawn").Process(target=write_sae, args=(arguments, seed, directory))
        maker.start()
        maker.join()
        return SparseAutoencoder.from_pretrained(directory)


def write_sae(arguments: argparse.Namespace, seed: int, directory: str) -> None:
    kind = ARCHITECTURES["topk"]
    config = kind.Config.model_validate({"d_sae": arguments.d_sae, "k": arguments.k})
    kind(config, arguments.d_model, generator=torch.Generator().manual_seed(seed)).save_pretrained(directory)


def measured(run: LearnedRun, directory: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    started = time.perf_counter()
    shown = most_written(run, arguments.latents)
    passed = time.perf_counter()
    other = dataclasses.replace(run, run_id="other", sae=random_sae(arguments, 1)) if arguments.compare else None
    write_page(page_content(run, shown, other), directory / "page.html")
    return {
        "pass_seconds": passed - started,
        "page_seconds": time.perf_counter() - passed,
        "page_bytes": (directory / "page.html").stat().st_size,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


if __name__ == "__main__":
    main()
