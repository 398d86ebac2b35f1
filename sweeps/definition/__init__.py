"""What to run: a YAML definition or Python -> validated runs of a grid, or the space of a search."""
