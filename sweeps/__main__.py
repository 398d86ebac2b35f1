"""`python -m sweeps`: the same as `sae-sweep`."""

from sweeps.cli import main

main()
