"""What the codec of a prior loses of pictures and maps, and whether it is what limits drawings.

Round trips through the posterior mean, scored against the exact maps; the Frechet distance of real renders that only
went through the codec, beside that of real renders; and the loss of the network by noise level on renders that it was
trained on and on others: where the two agree, more data would change little.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.priors import Prior, load_prior
from ..core.sampling.denoiser import Denoiser
from ..toybox.captions import caption
from ..toybox.dataset import RenderedSet, RenderJob, render_set
from ..toybox.judge import Judge
from ..toybox.maps import MAPS, MapPictures
from ..toybox.programs import draw
from .distances import frechet
from .intervals import bootstrapped, digits
from .runner import Context
from .toy_latents import decoded, encoded, features, renders, seeded_noise


@dataclass(frozen=True)
class CodecBench:
    """How much is rendered."""

    groups: int = 64
    """objects, four views each, and a fourth as many rooms, as every kind of map"""
    distance_groups: int = 250
    """objects of four views of which the Frechet distance is taken, and four times as many others in one view"""
    level_images: int = 512
    levels: tuple[int, ...] = (20, 80, 160, 280, 400, 520, 640, 760, 880, 960)


QUICK = CodecBench(2, 4, 8, (160, 640))


def run(context: Context) -> dict[str, Any]:
    """One row for each kind of map, the distances, and the losses by level."""
    config = QUICK if context.quick else CodecBench()
    prior = load_prior(context.prior)
    return {
        "config": asdict(config),
        "seeds": [context.seed],
        "table": round_trips(prior, config),
        "distances": distances(prior, Judge.from_pretrained(), config),
        "loss_by_level": losses(prior, config, context.seed),
    }


def round_trips(prior: Prior, config: CodecBench) -> list[dict[str, Any]]:
    """A row for each kind of map of objects and of rooms: means over pictures, of degrees and depth also the median
    over pixels."""
    rows = []
    with TemporaryDirectory() as folder:
        for name, groups, size in (("object", config.groups, 64), ("room", max(1, config.groups // 4), 96)):
            job = RenderJob(name, "test", groups, size, maps=True)
            pictures = MapPictures([(RenderedSet(render_set(job, Path(folder) / name, 1)), tuple(MAPS))], 64)
            for number, kind in enumerate(MAPS):
                chosen = np.arange(number, len(pictures), len(MAPS))
                back = through(prior, to_unit(pictures.images(chosen)))
                found = pictures.scores(chosen, back.permute(0, 2, 3, 1).numpy())
                rows.append({"world": name, "kind": kind, **_row(found)})
    return rows


def _row(found: dict[str, np.ndarray]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, values in found.items():
        short = name.rpartition("/")[2]
        row[short] = bootstrapped(values) if short in ("psnr", "edges") else round(float(values.mean()), 5)
        if short not in ("psnr", "edges"):
            row[f"{short}_median"] = round(float(np.median(values)), 5)
    return row


def distances(prior: Prior, judge: Judge, config: CodecBench) -> dict[str, float]:
    """Frechet distances of other objects, as rendered and after a round trip, from objects of the test split."""
    count = config.distance_groups
    reference = features(judge, renders("test", count).images)
    others = renders("train", 4 * count, views=1, first=1000).images
    found = {"renders": others, "through the codec": through(prior, others)}
    return {name: round(frechet(reference, features(judge, images)), 3) for name, images in found.items()}


@torch.no_grad()
def losses(prior: Prior, config: CodecBench, seed: int) -> list[dict[str, Any]]:
    """Mean squared error of the clean estimate at each time, on train and on validation objects, with intervals."""
    rows: list[dict[str, Any]] = [{"t": t} for t in config.levels]
    for split in ("train", "val"):
        latents = encoded(prior, renders(split, config.level_images, views=1).images)
        noise = seeded_noise(latents.shape[1:], len(latents), seed)
        condition = prior.encode_text([caption(draw(split, index)) for index in range(len(latents))])
        parts = [slice(start, start + 64) for start in range(0, len(latents), 64)]
        asked = [Denoiser(prior, condition.index(part)) for part in parts]
        for row in rows:
            level = asked[0].schedule.at_index(float(row["t"]))
            noisy, _ = asked[0].schedule.noised(latents, level, noise)
            clean = torch.cat([ask(noisy[part], level).x0 for ask, part in zip(asked, parts, strict=True)])
            row["snr"] = digits(torch.as_tensor(2 * level.lam).exp())
            row[split] = bootstrapped((clean - latents).double().square().flatten(1).mean(1).numpy())
    return rows


def to_unit(images: np.ndarray) -> Tensor:
    """uint8 (n, H, W, 3) to float32 (n, 3, H, W) in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def through(prior: Prior, images: Tensor) -> Tensor:
    """Pictures (n, 3, H, W) in [0, 1] after a round trip through the latents."""
    return decoded(prior, encoded(prior, images)).clamp(0, 1).cpu()
