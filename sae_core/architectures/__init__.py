"""SAE architectures: one file each, config and class, registered in `sae_core.config.run.ARCHITECTURES`."""
