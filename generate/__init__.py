"""The engine of generators: per-prompt optimisation, what it looks at, what pulls on it, and how it ends as a mesh."""
