"""Training of a group of SAEs on one stream: `loop.py` has the only loop."""

from sae_core.training.loop import Learner, TrainResult, train_group, train_run

__all__ = ["Learner", "TrainResult", "train_group", "train_run"]
