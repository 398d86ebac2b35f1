"""The embedded default: a small real language model, and real text found on every machine."""
