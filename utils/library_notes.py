"""Notes of libraries that say nothing a user could act on, told apart by their words; all else they say stays."""

from __future__ import annotations

import logging

IDLE = {
    # Pictures are prepared without torchvision by choice: it does not import beside torch's CPU build.
    "transformers.utils.import_utils": "requires torchvision (not installed)",
    # Said of every network that is cast, also when the list of such modules is empty.
    "diffusers.models.modeling_utils": "that should be kept in float32: []",
}


def drop_idle_notes() -> None:
    """Such records are not printed from now on, however often this is called."""
    for name, words in IDLE.items():
        logger = logging.getLogger(name)
        if not any(isinstance(one, Without) for one in logger.filters):
            logger.addFilter(Without(words))


class Without(logging.Filter):
    """Passes over records with some words."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words = words

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging.Filter."""
        return self.words not in record.getMessage()
