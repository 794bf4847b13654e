"""Pictures that only some machines can read: HEIC with pillow-heif, AVIF with it or with Pillow's own codec."""

from __future__ import annotations

import contextlib

from PIL import features

HEIC = (".heic", ".heif")
AVIF = (".avif",)


def register() -> tuple[str, ...]:
    """Teaches Pillow what is installed. Returns the suffixes that can be read beside the usual ones."""
    found: tuple[str, ...] = AVIF if features.check("avif") else ()
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
        found += HEIC
    return found
