"""Fast paths for latents that are mostly zero: selection, decoding, and gradients at active latents only."""
