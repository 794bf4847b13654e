"""Thin entry points: `python -m unproject.scripts.NAME`."""

import logging


def _worth_telling(record: logging.LogRecord) -> bool:
    """Not that pictures are prepared without torchvision, which is so by choice: it does not import beside torch's CPU
    build, and every import of a pipeline says it again. All else that the library has to say stays."""
    return "requires torchvision (not installed)" not in record.getMessage()


logging.getLogger("transformers.utils.import_utils").addFilter(_worth_telling)
