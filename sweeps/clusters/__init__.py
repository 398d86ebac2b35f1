"""Files that start a sweep where people run: Slurm, Kubernetes, machines over SSH, clouds, containers. See docs/clusters.md."""
