"""All nouns in one table."""

from __future__ import annotations

from .nouns import Noun, buildings, creatures, furniture, kitchen, plants, solids, things, vehicles

NOUNS: dict[str, Noun] = {
    **furniture.NOUNS,
    **kitchen.NOUNS,
    **vehicles.NOUNS,
    **buildings.NOUNS,
    **plants.NOUNS,
    **creatures.NOUNS,
    **things.NOUNS,
    **solids.NOUNS,
}
