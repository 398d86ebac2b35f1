"""What leaves a results directory: which runs (`choice`), and in which form: a folder per SAE (`folders`), sets for circuit-tracer."""
