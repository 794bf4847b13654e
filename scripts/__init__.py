"""Thin entry points: `python -m unproject.scripts.NAME`."""
