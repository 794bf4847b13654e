"""Readers of foreign mesh and point files: what is not understood is refused or named, never passed over."""
