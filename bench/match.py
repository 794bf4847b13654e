"""Correspondence: features of the prior against colours, fused with a second encoder, over noise levels and layers.

Toy pairs show two objects of one noun (other proportions, colours and lights) or one object under two lights, turned by
up to 60 degrees; their key points are exact. Nothing was tuned on them: noise level, weight and sizes are the published
ones. PCK is the share of points within a tenth of the longer side of the target's box. Real pairs as they come.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.priors import Prior, StableDiffusionPrior, load_prior
from ..core.sampling.features import Look, decoder_layers
from ..geometry.matching import carried
from ..pipelines.match_images import MatchImages, sift
from ..tasks.correspondence import Encoder, MatchConfig
from ..tasks.encoders import Joined
from ..tasks.matches import Matches, drawn
from ..tasks.metrics import pck, spearman
from ..tasks.train import random_unet_like
from ..toybox.judge import Judge
from ..toybox.judge_net import FeatureMaps
from ..utils.pictures import save_image
from .intervals import share, spread
from .match_pairs import Kind, Pair, real_pairs, toy_pair
from .runner import Context

PATCH_PX = 4
PUBLISHED = 100.0
SHOWN = (0, 1, 2, 3)


@dataclass(frozen=True)
class MatchBench:
    """Sizes of the experiment."""

    pairs: int = 64
    """of objects of one kind; half as many of one object"""
    size: int = 128
    times: tuple[float, ...] = (-1, 0, 50, 100, 200, 300, 500)
    sides: tuple[int, ...] = (64, 96, 128)
    noise_seeds: tuple[int, ...] = (42, 43, 44)
    seed: int = 0


QUICK = MatchBench(4, 64, (-1, 100, 500), (64,), (42,))


@dataclass(frozen=True)
class Way:
    """One way of matching, and what its row says."""

    name: str
    pipe: MatchImages | None  # None: SIFT
    facts: dict[str, Any]

    def __call__(self, pair: Pair) -> Matches | Tensor:
        """The key points of the first picture in the second: matches, or places (K, 2) alone."""
        a, b = pair.pictures
        if self.pipe is not None:
            return self.pipe.transfer(a, b, pair.points[0])
        found = sift(a, b)
        places = (torch.from_numpy(part) for part in (pair.points[0], found.points_a, found.points_b))
        return carried(*places)


def run(context: Context) -> dict[str, Any]:
    """Both kinds of toy pairs by every way, real pairs by the main ones."""
    config = QUICK if context.quick else MatchBench(seed=context.seed)
    prior, encoder = load_prior(context.prior), Joined(FeatureMaps(Judge.from_pretrained().net))
    first = config.seed * config.pairs
    kinds: dict[Kind, list[Pair]] = {
        "kind": [toy_pair(first + i, config.size) for i in range(config.pairs)],
        "object": [toy_pair(first + i, config.size, "object") for i in range(max(config.pairs // 2, 1))],
    }
    main = list(main_ways(prior, encoder))
    table = [{**measured(way, pairs), "pairs": f"toys, {kind}"} for kind, pairs in kinds.items() for way in main]
    sweeps = [{**measured(way, kinds["kind"]), "pairs": "toys, kind"} for way in swept(prior, encoder, config)]
    real = [{**measured(way, [pair]), "pairs": pair.name} for pair in real_pairs() for way in main]
    pictured = [pair for i, pair in enumerate(kinds["kind"]) if i in SHOWN]
    fused = next(way for way in main if way.name == "fused").pipe
    assert fused is not None
    save_image(context.picture(), sheet(fused, pictured))
    found = {"table": table, "sweeps": sweeps, "real": real, "claims": claims([*table, *sweeps])}
    return {"config": asdict(config), "seeds": list(config.noise_seeds), **found}


def colours(pictures: Tensor) -> Tensor:
    """What stands around each cell of 4 px: the 12 x 12 colours, (B, 432, h, w)."""
    cells = pictures.shape[-1] // PATCH_PX
    return F.unfold(pictures, 3 * PATCH_PX, padding=PATCH_PX, stride=PATCH_PX).reshape(len(pictures), -1, cells, cells)


def main_ways(prior: Prior, encoder: Encoder) -> Iterator[Way]:
    """The prior, what it is compared with, and the fusion."""
    alone = MatchConfig(alpha=0.0)
    yield Way("colours", MatchImages(prior, colours, alone), {})
    yield Way("SIFT", None, {})
    yield Way("latents", MatchImages(prior, lambda x: prior.encode(0.5 * x + 0.5), alone), {})
    if isinstance(prior, StableDiffusionPrior):
        random = prior.with_network(random_unet_like(prior.network, 0), prior.prediction_type)
        yield Way("random network", MatchImages(random), {"noise_index": PUBLISHED})
    yield Way("prior", MatchImages(prior), {"noise_index": PUBLISHED})
    yield Way("second encoder", MatchImages(prior, encoder, alone), {})
    yield Way("fused", MatchImages(prior, encoder), {"noise_index": PUBLISHED})


def swept(prior: Prior, encoder: Encoder, config: MatchBench) -> Iterator[Way]:
    """The prior alone over noise levels, layers, sizes and noises; the fusion over its weight."""
    plain = MatchConfig()
    for time in config.times:
        yield Way(
            "prior, noise level", MatchImages(prior, None, replace(plain, look=Look(time))), {"noise_index": time}
        )
    for layer in decoder_layers(prior.network):
        yield Way(
            "prior, one layer", MatchImages(prior, None, replace(plain, look=Look(layers=(layer,)))), {"layer": layer}
        )
    for side in config.sides:
        yield Way("prior, size", MatchImages(prior, None, replace(plain, size=side)), {"side_px": side})
    for seed in config.noise_seeds:
        for shared in (True, False):
            asked = replace(plain, look=Look(noise_seed=seed), shared_noise=shared)
            name = "prior, shared noise" if shared else "prior, own noises"
            yield Way(name, MatchImages(prior, None, asked), {"noise_seed": seed})
    for alpha in (0.25, 0.75):
        yield Way("fused, weight", MatchImages(prior, encoder, replace(plain, alpha=alpha)), {"alpha": alpha})


def measured(way: Way, pairs: Sequence[Pair]) -> dict[str, Any]:
    """PCK per point (with its interval) and per image at 0.1 of the box, at 0.05, and what there and back foretells."""
    errors, cycles, agrees, sizes = [], [], [], []
    for pair in pairs:
        found, truth = way(pair), torch.from_numpy(pair.points[1])
        places = torch.from_numpy(found.points_b) if isinstance(found, Matches) else found
        errors.append((places - truth).norm(dim=1))
        sizes.append(pair.box_px)
        if isinstance(found, Matches):
            cycles.append(torch.from_numpy(found.cycle_px))
            agrees.append(torch.from_numpy(found.agrees))
    right = [one < 0.1 * size for one, size in zip(errors, sizes, strict=True)]
    row = {
        "method": way.name,
        **way.facts,
        "pck": share(torch.cat(right).numpy()),
        "pck_per_image": round(pck(errors, sizes, 0.1, "image"), 4),
        "pck_0.05": round(pck(errors, sizes, 0.05), 4),
        "error_px": spread(torch.cat(errors).nan_to_num(float(np.mean(sizes))).numpy()),
    }
    if cycles:
        sure = torch.cat(agrees)
        row["cycle_spearman"] = round(float(spearman(torch.cat(cycles), torch.cat(errors))), 3)
        row["agreeing"] = round(float(sure.double().mean()), 4)
        if bool(sure.any()):
            row["pck_of_agreeing"] = share(torch.cat(right)[sure].numpy())
    return row


def claims(table: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the paper says, as numbers: points of PCK, and where the best noise level lies."""
    by_name = {row["method"]: row["pck"]["value"] for row in reversed(table) if row["pairs"] == "toys, kind"}
    levels = {row["noise_index"]: row["pck"]["value"] for row in table if row["method"] == "prior, noise level"}
    best = max(levels, key=lambda time: levels[time])
    noises = {
        kind: [row["pck"]["value"] for row in table if row["method"] == f"prior, {kind}"]
        for kind in ("shared noise", "own noises")
    }
    return {
        "prior_over_colours_points": round(100 * (by_name["prior"] - by_name["colours"]), 1),
        "fusion_over_best_part_points": round(
            100 * (by_name["fused"] - max(by_name["prior"], by_name["second encoder"])), 1
        ),
        "best_noise_index": best,
        "inside": min(levels) < best < max(levels),
        "shared_over_own_noise_points": round(
            100 * float(np.mean(noises["shared noise"]) - np.mean(noises["own noises"])), 1
        ),
    }


def sheet(pipe: MatchImages, pairs: Sequence[Pair]) -> np.ndarray:
    """Key points of a few pairs carried over, one pair a row."""
    rows = [drawn(pipe.transfer(*pair.pictures, pair.points[0]), pair.pictures) for pair in pairs]
    return np.concatenate([row[:, : min(one.shape[1] for one in rows)] for row in rows])
