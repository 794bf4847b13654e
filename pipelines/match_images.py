"""Two pictures to the points that belong together: describe both, search, come back, tell how sure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.priors import Prior, load_prior
from ..tasks.correspondence import Encoder, Found, MatchConfig, Matcher, described
from ..tasks.encoders import DinoEncoder
from ..tasks.matches import AGREES_CELLS, Matches
from ..tasks.sift import sift_matches
from ..utils.errors import InputError
from .base import PriorPipeline
from .picture_inputs import PictureLike, fitted, pictures
from .validity import at_map_size, seen_pixels

HALF_CELL = 0.5
EDGE_SHARE = 16  # cells of a side for each one that is left out along the edges
PUBLISHED = MatchConfig()


class MatchImages(PriorPipeline):
    """Points that belong together in two pictures, also of different objects of one kind.

    >>> pipe = MatchImages.from_pretrained("toybox")
    >>> pipe("a.jpg", "b.jpg").save("a-b", ["a.jpg", "b.jpg"])
    >>> pipe.transfer("a.jpg", "b.jpg", [[120.5, 80.5]]).points_b
    """

    def __init__(self, prior: Prior, encoder: Encoder | None = None, config: MatchConfig = PUBLISHED) -> None:
        """`encoder`: a second one, pictures (B, 3, H, W) in [-1, 1] to features (B, C, h, w) (tasks/encoders.py)."""
        super().__init__(prior)
        self.encoder, self.config = encoder, config

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "toybox",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        encoder: Encoder | str | Path | None = None,
        config: MatchConfig = PUBLISHED,
        torch_dtype: torch.dtype | None = None,
        **options: Any,
    ) -> MatchImages:
        """Loads a prior (`core.priors.load_prior`); `encoder` may be a folder of DINOv2 in transformers' layout."""
        if isinstance(encoder, (str, Path)):
            encoder = DinoEncoder.from_folder(encoder)
        if isinstance(encoder, nn.Module):
            encoder = encoder.to(device)
        return cls(load_prior(name, device, torch_dtype or dtype, **options), encoder, config)

    def to(self, *where: Any, **named: Any) -> MatchImages:
        """See PriorPipeline.to; the encoder moves along and keeps its precision."""
        super().to(*where, **named)
        if isinstance(self.encoder, nn.Module):
            self.encoder.to(self.device)
        return self

    @torch.no_grad()
    def __call__(
        self, a: PictureLike, b: PictureLike, *, valid: Sequence[Any] = (None, None), count: int = 0
    ) -> Matches:
        """Cells of `a` and `b` that are each other's nearest, those first that stand out most (`margins`).

        Args:
            a: a path, PIL image, array (H, W, 3) or tensor (3, H, W) in [0, 1]. Likewise `b`, of any other size.
            valid: (H, W) bool each of what a picture shows; None: see `ImageToGeometry`. What is not shown is never
                matched.
            count: the best so many; 0: all.
        """
        pair = _Pair(self, a, b, valid)
        edge = min(pair.matcher.grid) // EDGE_SHARE
        found = pair.told(pair.matcher.mutual(edge), ())
        order = np.argsort(-found.margins, kind="stable")
        return found.chosen(order[:count] if count else order)

    @torch.no_grad()
    def transfer(
        self,
        a: PictureLike,
        b: PictureLike,
        points: Any,
        *,
        names: Sequence[str] = (),
        valid: Sequence[Any] = (None, None),
    ) -> Matches:
        """Where points (K, 2) of `a`, px with pixel centres at +0.5, are in `b`; in the order they were given.

        Raises InputError for points outside the picture.
        """
        given = np.asarray(points, float).reshape(-1, 2)
        pair = _Pair(self, a, b, valid)
        width, height = pair.sizes[0]
        outside = [i for i, (x, y) in enumerate(given) if not (0 <= x <= width and 0 <= y <= height)]
        if outside:
            x, y = given[outside[0]]
            raise InputError(f"point {outside[0]} ({x:g}, {y:g}) lies outside the first picture, {width} x {height} px")
        places = torch.from_numpy(given / pair.cells_px[0]).to(pair.matcher.descriptors)
        return pair.told(pair.matcher.moved(places), tuple(names))


class _Pair:
    """A pair of pictures in one square grid of cells."""

    def __init__(self, pipe: MatchImages, a: PictureLike, b: PictureLike, valid: Sequence[Any]) -> None:
        self.pipe, before = pipe, pipe.prior.nfe
        side = pipe.config.side(pipe.prior)
        squares, shown, self.sizes, inner = [], [], list[tuple[int, int]](), []
        for one, mask in zip((a, b), valid, strict=True):
            images = pictures(one)
            if len(images) != 1:
                raise InputError(f"got {len(images)} pictures where one of a pair belongs; call once for each pair")
            square, (height, width) = fitted(images, side, side)
            seen = torch.zeros(1, 1, side, side)
            seen[..., :height, :width] = at_map_size(seen_pixels(one, images, mask), (height, width))
            squares.append(square)
            shown.append(seen)
            self.sizes.append((images.shape[3], images.shape[2]))
            inner.append((width, height))
        maps = described(pipe.prior, torch.cat(squares).to(pipe.device), pipe.config, pipe.encoder)
        cells = nn.functional.adaptive_avg_pool2d(torch.cat(shown), (maps.shape[2], maps.shape[3])) >= HALF_CELL
        self.matcher = Matcher(maps, cells.flatten(1).to(maps.device))
        grid = np.array([maps.shape[3], maps.shape[2]])
        self.cells_px = [side / grid * np.array(size) / small for size, small in zip(self.sizes, inner, strict=True)]
        self.nfe = pipe.prior.nfe - before

    def told(self, found: Found, names: tuple[str, ...]) -> Matches:
        """What was found, in px of the pictures."""
        cell = [float(one.mean()) for one in self.cells_px]
        cycle = _array(found.cycle)
        config = self.pipe.config
        encoder = "" if self.pipe.encoder is None or config.alpha == 1 else f" and {type(self.pipe.encoder).__name__}"
        return Matches(
            _array(found.a) * self.cells_px[0],
            np.clip(_array(found.b) * self.cells_px[1], 0, self.sizes[1]),
            _array(found.score),
            _array(found.margin),
            _array(found.spread) * cell[1],
            cycle * cell[0],
            cycle <= AGREES_CELLS,
            names,
            cell[1],
            f"features of {self.pipe.prior.name}{encoder}",
            {"noise_index": config.look.index, "grid": list(self.matcher.grid)},
            self.nfe,
        )


def sift(a: PictureLike, b: PictureLike) -> Matches:
    """The classical matches of two pictures, the largest cosine first: SIFT, to compare with."""
    first, second = (pictures(one)[0].permute(1, 2, 0).numpy() for one in (a, b))
    points_a, points_b, scores = sift_matches(first, second)
    order = np.argsort(-scores, kind="stable")
    nothing = np.zeros(len(scores))
    return Matches(
        points_a[order], points_b[order], scores[order], nothing, nothing, nothing, nothing == 0, (), 0.0, "SIFT", {}, 0
    )


def _array(values: Tensor) -> np.ndarray:
    return values.cpu().double().numpy()
