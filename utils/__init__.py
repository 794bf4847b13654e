"""Small helpers that every layer may import: errors, files, seeds, configs, progress, pictures."""
