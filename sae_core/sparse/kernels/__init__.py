"""Kernels that work on lists of active latents: plain PyTorch (`reference`), CPU, GPU. `choice` says which run."""
