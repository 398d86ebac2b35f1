"""Makes `python -m sweeps.cli` the same as `sae-sweep`."""

from sweeps.cli import main

main()
