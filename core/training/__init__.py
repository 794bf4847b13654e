"""The one loop for every optimisation: trainer, checkpoints, optimisers, latents, and objectives that make priors."""
