"""Contract tests take their cases from the registries; `SAE_SWEEP_TEST_PLUGINS` names plugins to test too, as PATH names directories."""

import os

from sae_core import plugins

plugins.load(filter(None, os.environ.get("SAE_SWEEP_TEST_PLUGINS", "").split(os.pathsep)))
