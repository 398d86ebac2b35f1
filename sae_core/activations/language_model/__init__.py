"""Activations of a language model over text."""

from sae_core.activations.language_model.source import LanguageModelSource

__all__ = ["LanguageModelSource"]
