"""SAELens reads the windows that `sae-sweep pretokenize` writes, and we read what its PretokenizeRunner writes.

Runs where sae-lens is installed beside us, or in the Python that SAELENS_PYTHON names.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from tiny_model import DEMO_MODEL, documents, language_model_config, write_text

from sae_core.activations.language_model.source import LanguageModelSource
from sae_core.activations.language_model.token_file import TokenFile
from sweeps.definition.sweep import Sweep
from sweeps.planning.pretokenizing import pretokenize

SAELENS_PYTHON = os.environ.get("SAELENS_PYTHON") or (sys.executable if importlib.util.find_spec("sae_lens") else None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(SAELENS_PYTHON is None, reason="sae-lens is not installed, and SAELENS_PYTHON is not set"),
]

READ = """
import json, sys, torch
from datasets import load_dataset, load_from_disk
from sae_lens.training.activations_store import ActivationsStore
directory, model = sys.argv[1:]
class Model(torch.nn.Linear):
    tokenizer = None
def tokens(dataset):
    store = ActivationsStore(
        model=Model(2, 2), dataset=dataset, streaming=False, hook_name="x", hook_head_index=None, context_size=128, d_in=8,
        n_batches_in_buffer=2, total_training_tokens=100, store_batch_size_prompts=2, train_batch_size_tokens=8, prepend_bos=True,
        normalize_activations="none", device=torch.device("cpu"), dtype="float32",
    )
    assert store.is_dataset_tokenized
    return store.get_batch_tokens(5).tolist()
print(json.dumps([tokens(load_from_disk(directory)["train"]), tokens(load_dataset(directory, split="train"))]))
"""
WRITE = """
import sys
from sae_lens import PretokenizeRunner, PretokenizeRunnerConfig
text, model, to = sys.argv[1:]
PretokenizeRunner(PretokenizeRunnerConfig(
    tokenizer_name=model, dataset_path=text, split="train", context_size=128, num_proc=1, shuffle=True, save_path=to, streaming=False
)).run()
"""


def in_saelens(program: str, *arguments: Path | str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    command = [str(SAELENS_PYTHON), "-c", program, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_saelens_reads_our_windows(tmp_path: Path) -> None:
    sweep = Sweep(
        name="text",
        model={"name": DEMO_MODEL, "hook_point": "blocks.2.hook_resid_post"},
        data={"dataset": str(write_text(tmp_path / "text.jsonl")), "train_tokens": 2_000, "eval_tokens": 1_000},
        sae={"d_sae": 64},
        train={"batch_size": 128},
        architectures={"topk": {"k": [4]}},
    )
    pretokenize(sweep, tmp_path / "tokens")
    ours = torch.as_tensor(datasets.load_from_disk(str(tmp_path / "tokens"))["train"]["input_ids"][:5]).tolist()
    assert json.loads(in_saelens(READ, tmp_path / "tokens", DEMO_MODEL).splitlines()[-1]) == [ours, ours]


def test_we_read_what_its_runner_writes(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "train.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in documents(40)))
    in_saelens(WRITE, tmp_path / "text", DEMO_MODEL, tmp_path / "theirs")
    source = LanguageModelSource(language_model_config(tmp_path, dataset=str(tmp_path / "theirs"), eval_split="train", eval_tokens=200))
    source.check()
    source.prepare(tmp_path / "cache")
    file = TokenFile(tmp_path / "cache")
    theirs = {tuple(row) for row in torch.as_tensor(datasets.load_from_disk(str(tmp_path / "theirs"))["input_ids"][:]).tolist()}
    windows = [*file.heldout.tolist(), *file.windows("train", 0, 1000)[0].tolist()]
    assert len(windows) > 10 and all(tuple(window) in theirs for window in windows)
