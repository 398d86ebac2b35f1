"""Activation sources: where x comes from, one file per source."""
