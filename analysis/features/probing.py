"""k-sparse probing: how well k latents of an SAE tell texts with a label from others.

For a label: as many texts with it as without are drawn. On the training part, each latent is divided by its mean non-zero activation, and
the k latents are taken whose means over the two kinds of text differ most. A logistic regression on them is measured on the test part.
What it reads is the activation of a text's last token; long texts lose their beginning.

    accuracy = mean over labels of the fraction of test texts that are told apart; 0.5 is chance

Gurnee et al. 2023, arXiv:2305.01610 (k-sparse probing); the recipe is that of sae-probes (Kantamneni et al. 2025, arXiv:2502.16681), with
l2 regularization in place of l1.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.features.activations import rows_at_a_time
from analysis.features.probe_data import LabeledTexts, missing_scikit_learn

if TYPE_CHECKING:
    from torch import Tensor

    from analysis.features.run import LearnedRun

MOST_TRAINING = 1_024
TEST_SHARE, LEAST_TEST = 0.2, 100
"""Test texts of a label: this share, but at least so many where that is not more than half."""
C_VALUES = np.logspace(5, -5, 10)
"""Inverse strengths of regularization, of which validation chooses."""
FOLDS, FOLDED_BELOW = 6, 128
MODEL_TOKENS = 4_096

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Task:
    """One label against all others: rows of the texts, and which of them have it."""

    label: str
    train: NDArray[np.int64]
    test: NDArray[np.int64]
    is_label: NDArray[np.bool_]
    """Of all texts."""


@dataclass(frozen=True, slots=True)
class Score:
    """How well a probe does on the test texts of a label."""

    accuracy: float
    auc: float
    n_test: int
    columns: tuple[int, ...] = ()
    """The latents it reads."""


def tasks_of(data: LabeledTexts, seed: int = 42) -> list[Task]:
    """One task per label, or one in all where there are two labels; always the same ones for a dataset."""
    labels = np.array(data.labels)
    names = sorted(set(data.labels))
    return [_task(name, labels == name, np.array(data.groups), seed) for name in (names if len(names) > 2 else names[1:])]


def last_token_activations(run: LearnedRun, texts: Sequence[str]) -> Tensor:
    """Activations at the hook point of the last token of each text, [n, d_in]; the first tokens of long texts are left out.

    Raises:
        ConfigError: the run has no language model, or the model no tokenizer.
    """
    import torch

    from analysis.features.interventions import as_tokens

    run.model  # noqa: B018 - it raises where there is none
    config = run.source.config.model
    start = [run.texts.bos] if config.prepend_bos and run.texts.bos is not None else []
    most = config.context_size - len(start)
    as_tokens(run, texts[0][:1])  # one message where words cannot be read
    tokens = [[*start, *run.texts.encode(text)[-most:]] for text in texts]
    model = run.source.model  # type: ignore[attr-defined]  # at the hook point that is read
    found = []
    for first in range(0, len(tokens), max(1, MODEL_TOKENS // config.context_size)):
        some = tokens[first : first + max(1, MODEL_TOKENS // config.context_size)]
        lengths = torch.tensor([len(one) for one in some])
        padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(one) for one in some], batch_first=True)
        x = model.read(padded.to(run.source.device))[0]
        found.append(x[torch.arange(len(some)), lengths - 1].float())
        run.progress("reading labeled texts", first + len(some), len(tokens))
    return torch.cat(found)


def probe_latents(run: LearnedRun, x: Tensor, tasks: Sequence[Task], ks: Sequence[int]) -> dict[int, dict[str, Score]]:
    """k -> label -> score of a probe of k latents.

    Args:
        x: activations that the SAE reads, [n, d_in].
    """
    latents = _latents(run, x)
    found: dict[int, dict[str, Score]] = {k: {} for k in ks}
    for task in tasks:
        scaled, order = _ranked(latents, task)
        for k in ks:
            chosen = order[:k]
            found[k][task.label] = _fitted(scaled[:, chosen].toarray(), task, tuple(chosen.tolist()))
    return found


def probe_activations(x: Tensor, tasks: Sequence[Task]) -> dict[str, Score]:
    """Label -> score of a probe of the whole activation, without an SAE: what probes of latents are compared with."""
    values = x.double().cpu().numpy()
    found = {}
    for task in tasks:
        spread = values[task.train].std(axis=0)
        found[task.label] = _fitted((values - values[task.train].mean(axis=0)) / np.where(spread > 0, spread, 1), task)
    return found


def summary(scores: Mapping[str, Score]) -> dict[str, Any]:
    """Means over labels, and the standard error of the accuracy that comes from the number of test texts alone."""
    accuracies = np.array([score.accuracy for score in scores.values()])
    variances = [score.accuracy * (1 - score.accuracy) / score.n_test for score in scores.values()]
    return {
        "accuracy": float(accuracies.mean()),
        "auc": float(np.mean([score.auc for score in scores.values()])),
        "standard_error": float(np.sqrt(np.sum(variances)) / len(scores)),
        "labels": {
            label: {"accuracy": score.accuracy, "auc": score.auc, "n_test": score.n_test, "latents": list(score.columns)}
            for label, score in scores.items()
        },
    }


def _task(label: str, is_label: NDArray[np.bool_], groups: NDArray[Any], seed: int) -> Task:
    random = np.random.default_rng([seed, *label.encode()])
    rows = random.permutation(len(is_label))
    per_kind = min(int(is_label.sum()), int((~is_label).sum()))
    n_test = int(max(TEST_SHARE * per_kind, min(LEAST_TEST / 2, per_kind / 2)))
    # Whole groups go to the test part, until it has enough of the rarer kind.
    test_groups: set[Any] = set()
    counts = {True: 0, False: 0}
    for group in random.permutation(np.unique(groups)):
        if min(counts.values()) >= n_test:
            break
        test_groups.add(group)
        members = is_label[groups == group]
        counts[True], counts[False] = counts[True] + int(members.sum()), counts[False] + int((~members).sum())
    in_test = np.isin(groups[rows], list(test_groups))
    return Task(label, _balanced(rows[~in_test], is_label, MOST_TRAINING), _balanced(rows[in_test], is_label, len(rows)), is_label)


def _balanced(rows: NDArray[np.int64], is_label: NDArray[np.bool_], most: int) -> NDArray[np.int64]:
    """As many rows of each kind, in their order."""
    with_label, without = rows[is_label[rows]], rows[~is_label[rows]]
    n = min(len(with_label), len(without), most // 2)
    chosen = np.concatenate([with_label[:n], without[:n]])
    return rows[np.isin(rows, chosen)]


def _latents(run: LearnedRun, x: Tensor) -> Any:
    """All latents of all texts, as a sparse matrix [n, d_sae]."""
    from scipy import sparse

    parts = []
    for rows in x.split(rows_at_a_time(x.device.type, run.sae.d_sae)):
        active, values = run.sae.active(rows)
        arrays = (values.double().cpu().numpy(), active.indices.cpu().numpy(), active.offsets.cpu().numpy())
        parts.append(sparse.csr_array(arrays, shape=(len(rows), run.sae.d_sae)))
    return sparse.vstack(parts, format="csr")


def _ranked(latents: Any, task: Task) -> tuple[Any, NDArray[np.int64]]:
    """The latents, scaled, as columns, and their numbers, those that differ most between the two kinds of training text first."""
    train = latents[task.train]
    times, total = (train != 0).sum(axis=0), abs(train).sum(axis=0)
    scale = np.where(times > 0, total / np.maximum(times, 1), 1)
    kinds = task.is_label[task.train]
    gap = np.abs(train[kinds].mean(axis=0) - train[~kinds].mean(axis=0)) / scale
    return latents.multiply(1 / scale).tocsc(), np.argsort(-gap, kind="stable")


def _fitted(columns: Floats, task: Task, chosen: tuple[int, ...] = ()) -> Score:
    """A logistic regression on the training texts, measured on the test texts."""
    try:
        from sklearn.metrics import roc_auc_score
    except ImportError:
        raise missing_scikit_learn() from None

    x, y = columns[task.train], task.is_label[task.train]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that weak regularization does not converge: validation then chooses another
        model = _regression(max(C_VALUES, key=lambda c: _validated(c, x, y))).fit(x, y)
    truth = task.is_label[task.test]
    scores = model.decision_function(columns[task.test])
    return Score(float(((scores > 0) == truth).mean()), float(roc_auc_score(truth, scores)), len(truth), chosen)


def _validated(c: float, x: Floats, y: NDArray[np.bool_]) -> float:
    """Mean area under the curve on parts of the training texts."""
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit

    n = len(y)
    splitter = StratifiedKFold(FOLDS) if n < FOLDED_BELOW else StratifiedShuffleSplit(1, test_size=min(n // 5, 100), random_state=42)
    aucs = [roc_auc_score(y[held], _regression(c).fit(x[fit], y[fit]).decision_function(x[held])) for fit, held in splitter.split(x, y)]
    return float(np.mean(aucs))


def _regression(c: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=c, max_iter=1000)
