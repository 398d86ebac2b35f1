"""docs/coming-from.md names every option of SAELens, also those of versions to come."""

import dataclasses
import re

import pytest
from documents import ROOT

pytestmark = pytest.mark.slow


def test_every_option_is_named():
    sae_lens, config = pytest.importorskip("sae_lens"), pytest.importorskip("sae_lens.config")
    configs = [
        config.LanguageModelSAERunnerConfig,
        config.CacheActivationsRunnerConfig,
        config.PretokenizeRunnerConfig,
        config.LoggingConfig,
        config.SAETrainerConfig,
        *(kind for name, kind in vars(sae_lens).items() if name.endswith("TrainingSAEConfig")),
    ]
    fields = {field.name for config in configs for field in dataclasses.fields(config)}
    named = set(re.findall(r"\w+", (ROOT / "docs" / "coming-from.md").read_text()))
    assert fields - {"sae", "metadata"} <= named
