"""The toybox: a procedural world in which everything is known.

>>> from unproject import toybox
>>> one = toybox.sample("train", 0)
>>> one.caption, one.renderings[0].rgb.shape
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..utils.lazy import loader

if TYPE_CHECKING:
    from .captions import Meaning, caption, parse, say, vocabulary
    from .catalogue import NOUNS
    from .dataset import RenderedSet, RenderJob, render_set
    from .judge import Judge
    from .places import make_scene
    from .programs import draw
    from .render import Renderer, Rendering, render_views
    from .samples import Sample, sample
    from .sensor import SensorModel, sense
    from .sheet import write_noun_sheet, write_sheet

__all__ = [
    "NOUNS",
    "Judge",
    "Meaning",
    "RenderJob",
    "RenderedSet",
    "Renderer",
    "Rendering",
    "Sample",
    "SensorModel",
    "caption",
    "draw",
    "make_scene",
    "parse",
    "render_set",
    "render_views",
    "sample",
    "say",
    "sense",
    "vocabulary",
    "write_noun_sheet",
    "write_sheet",
]

_HOMES = {
    "NOUNS": ".catalogue",
    "Judge": ".judge",
    "Meaning": ".captions",
    "RenderJob": ".dataset",
    "RenderedSet": ".dataset",
    "Renderer": ".render",
    "Rendering": ".render",
    "Sample": ".samples",
    "SensorModel": ".sensor",
    "caption": ".captions",
    "draw": ".programs",
    "make_scene": ".places",
    "parse": ".captions",
    "render_set": ".dataset",
    "render_views": ".render",
    "sample": ".samples",
    "say": ".captions",
    "sense": ".sensor",
    "vocabulary": ".captions",
    "write_noun_sheet": ".sheet",
    "write_sheet": ".sheet",
}

__getattr__ = loader(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
