"""Configuration of a run, frozen and strict: `run.py` has the fields, `spans.py` how stretches of training are written."""

from sae_core.config.base import Config as Config
from sae_core.config.base import Count as Count
from sae_core.config.base import Fraction as Fraction
from sae_core.config.base import Positive as Positive
from sae_core.config.coefficients import Coefficient as Coefficient
from sae_core.config.run import ARCHITECTURES as ARCHITECTURES
from sae_core.config.run import NORMALIZATIONS as NORMALIZATIONS
from sae_core.config.run import SOURCES as SOURCES
from sae_core.config.run import ActivationsConfig as ActivationsConfig
from sae_core.config.run import ArchitectureConfig as ArchitectureConfig
from sae_core.config.run import RunConfig as RunConfig
from sae_core.config.run import TrainConfig as TrainConfig
from sae_core.config.run import TranscoderConfig as TranscoderConfig
from sae_core.config.spans import Span as Span
