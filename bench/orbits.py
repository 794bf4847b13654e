"""Orbits from one picture (the multi-view part of Stable Video Diffusion) on the embedded prior, at equal updates.

Every setting is trained here from the same rendered orbits, in the same order, for the same number of updates:
    from scratch              the same network with random weights, all of it learns;
    from the image prior      all of it learns;
    adapter                   what `unproject train orbits` trains: the image prior stays as it is;
    joint adapter             the adapter, and spatial self-attention reads the pixels of all frames;
    independent views         the adapter, but the frames of an orbit do not see each other;
    as shipped                the weights of orbits that come with the prior, left out without any;
    several views             the prior of several views that comes with it, the picture one of four views, words and
                              azimuth as the judge reads them: what `unproject image-to-views` does. Nothing is trained.
Held-out orbits are drawn from their first frames and compared with the truth: PSNR and the distance of the judge's
features over the other frames ("quarter": over those a quarter, half and three quarters of a turn away, which four
views have), and how much neighbouring views disagree about a point of the true surface, found by
true depth ("disagreement"; that of the true renders is the floor, made by shine). Two further rows learn from a set
half of whose orbits stand still, as they are and without those that hardly move (curation): "motion" is what the drawn
orbits have of it, in shares of the truth's.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.priors import load_prior
from ..core.priors.diffusers import StableDiffusionPrior
from ..core.priors.orbits import ANGLES, FRAMES, MANIFEST, OrbitPrior, load_orbits
from ..core.priors.rows import Rows
from ..core.priors.temporal import TemporalConfig
from ..core.priors.video import TOKEN
from ..core.training.config import TrainerConfig
from ..core.training.objectives.orbits import OrbitConfig, OrbitObjective
from ..core.training.orbit_clips import OrbitClips, encoded_orbits, motion
from ..geometry.cameras import Camera
from ..geometry.seen import sample_pixels
from ..pipelines.image_to_views import VIEWS
from ..pipelines.picture_views import ViewSettings, drawer_of, drawn_views
from ..tasks.train import random_unet_like
from ..toybox.dataset import RenderJob, render_group
from ..toybox.judge import Judge
from ..toybox.judge_net import FeatureMaps
from ..toybox.reading import read_picture
from ..utils.errors import InputError
from ..utils.files import beside_weights
from ..utils.pictures import grid, save_image
from ..utils.seeds import generator as seeded
from .intervals import bootstrapped, ratio
from .runner import Context
from .short_training import trained

SCRATCH, PRIOR, ADAPTER, APART = "from scratch", "from the image prior", "adapter", "independent views"
JOINT, SHIPPED, SEVERAL = "joint adapter", "as shipped", "several views"
MIXED, CURATED = "half stand still", "half stand still, curated"
BEHIND = 0.03  # m by which a point may lie behind what a view shows there, and still be seen


@dataclass(frozen=True)
class OrbitsBench:
    """Sizes of the experiment."""

    orbits: int = 160  # to learn from
    heldout: int = 12
    updates: int = 100
    curated_updates: int = 60
    batch: int = 4
    lr: float = 1e-3
    steps: int = 20  # of the sampler
    guidance: tuple[float, float] = (1.0, 2.0)
    size: int = 64
    least_motion: float = 0.004  # of the curation
    seeds: tuple[int, ...] = (0,)
    pictured: int = 4


QUICK = OrbitsBench(8, 2, 2, 1, 1, steps=2, pictured=1)


class ApartPrior(OrbitPrior):
    """Frames that do not see each other: views of a picture one by one."""

    def _forward(self, x: Tensor, time: Tensor, rows: Rows) -> Tensor:
        told = [rows[name].to(self.dtype) for name in ("text", TOKEN, "concat")]
        return self.network(x.to(self.dtype), time, *told, rows[ANGLES], 1)


@dataclass
class RenderedOrbits:
    """Orbits of a split in memory: what `encoded_orbits` reads, and true depth (G F, H, W)."""

    rgb: np.ndarray  # (G F, H, W, 3) uint8
    depth_m: np.ndarray
    c2w: np.ndarray
    K: np.ndarray

    @classmethod
    def of(cls, split: str, count: int, size: int) -> RenderedOrbits:
        """The first orbits of a split."""
        job = RenderJob("orbit", split, count, size, geometry=True)
        groups = [render_group(job, index) for index in range(count)]
        columns = [np.concatenate([group[name] for group in groups]) for name in ("rgb", "depth_m", "c2w", "K")]
        return cls(*columns)

    def __len__(self) -> int:
        return len(self.rgb)

    def images(self, indices: np.ndarray) -> np.ndarray:
        """See Pictures."""
        return self.rgb[indices]

    def groups(self) -> np.ndarray:
        """See OrbitPictures."""
        return np.arange(len(self.rgb)).reshape(-1, FRAMES)

    def cameras(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See OrbitPictures."""
        return self.c2w[indices], self.K[indices]

    def camera(self, index: int) -> Camera:
        """Of one frame."""
        size = self.rgb.shape[1]
        c2w, K = (torch.from_numpy(part[index : index + 1]).float() for part in (self.c2w, self.K))
        return Camera(c2w, K, size, size)

    def half_still(self) -> RenderedOrbits:
        """Every other orbit shows its first frame all the time."""
        rgb = self.rgb.reshape(-1, FRAMES, *self.rgb.shape[1:]).copy()
        rgb[::2] = rgb[::2, :1]
        return replace(self, rgb=rgb.reshape(self.rgb.shape))


def run(context: Context) -> dict[str, Any]:
    """Every setting trained and measured; the table and a picture."""
    config = QUICK if context.quick else OrbitsBench()
    train, truth = (
        RenderedOrbits.of(split, count, config.size)
        for split, count in (("train", config.orbits), ("val", config.heldout))
    )
    eyes, table, shown = FeatureMaps(Judge.from_pretrained().net), [], []
    floor = [disagreement(truth, orbit, truth.rgb[rows] / 255.0) for orbit, rows in enumerate(truth.groups())]
    found: dict[str, list[dict[str, float]]] = {}
    shipped = (SHIPPED,) if weights_of(context.prior) else ()
    for name in (SCRATCH, PRIOR, ADAPTER, JOINT, APART, MIXED, CURATED, *shipped):
        for seed in config.seeds:
            drawn, cost = made(name, context.prior, config, train, truth, seed)
            records = [measured(truth, orbit, views, eyes) for orbit, views in enumerate(drawn)]
            found.setdefault(name, []).extend(records)
        table.append({"setting": name, **summary(found[name]), **cost})
        shown += list(drawn[: config.pictured].reshape(-1, *drawn.shape[2:]))
    if drawn_by := views_of(context.prior):
        quarters = four_views(drawn_by, config, truth)
        found[SEVERAL] = [quarter(views, true) for views, true in zip(quarters, truth_of(truth), strict=True)]
        table.append({"setting": SEVERAL, **summary(found[SEVERAL])})
        gaps = np.ones_like(quarters[: config.pictured])
        shown += list(np.stack([quarters[: config.pictured], gaps], 2).reshape(-1, *gaps.shape[2:]))
    rows = truth.groups()[: config.pictured].ravel()
    save_image(context.picture(), grid([*(truth.rgb[rows] / 255.0), *shown], columns=FRAMES))
    return {
        "config": asdict(config),
        "seeds": list(config.seeds),
        "table": table,
        "claims": claims(found),
        "floor": {"disagreement": bootstrapped(floor)},
    }


def made(
    name: str, prior: str, config: OrbitsBench, train: RenderedOrbits, truth: RenderedOrbits, seed: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """(held-out orbits (G, F, H, W, 3) that a setting draws after its training, what that cost)."""
    objective = objective_of(name, prior, seed)
    if name == SHIPPED:
        heldout = encoded_orbits(objective.prior.vae, truth, FRAMES)
        return drawn_orbits(objective, heldout, config, seed), {"parameters": parameters_of(objective)}
    curates = name in (MIXED, CURATED)
    least = config.least_motion if name == CURATED else 0.0
    vae = objective.prior.vae
    clips = encoded_orbits(vae, train.half_still() if curates else train, FRAMES, least)
    heldout = encoded_orbits(vae, truth, FRAMES)
    updates = config.curated_updates if curates else config.updates
    settings = TrainerConfig(
        steps=updates, batch=config.batch, lr=config.lr, warmup=min(20, updates), weight_decay=0.0, ema=0.98, seed=seed,
        save_every=max(updates, 1), log_every=max(updates // 4, 1),
    )  # fmt: skip
    before = objective.prior.nfe
    with trained(objective, clips, settings):
        rows = objective.prior.nfe - before
        drawn = drawn_orbits(objective, heldout, config, seed)
    cost = {"updates": updates, "learnt_orbits": len(clips), "train_rows": rows}
    return drawn, {**cost, "parameters": parameters_of(objective)}


def views_of(prior: str) -> Path | None:
    """The folder of the prior of several views that comes with a prior."""
    path = beside_weights(prior, "mv")
    return path if (path / VIEWS).is_file() else None


def four_views(folder: Path, config: OrbitsBench, truth: RenderedOrbits) -> np.ndarray:
    """(G, F / 2, H, W, 3) in [0, 1]: every second frame of each orbit, by a prior of several views."""
    drawer, found = drawer_of(load_prior(folder), "", read_picture), []
    for orbit, rows in enumerate(truth.groups()):
        picture = torch.from_numpy(truth.rgb[rows[0]]).permute(2, 0, 1)[None].float() / 255
        told, centre = drawer.read(picture[0], None, None), truth.c2w[rows[0], :3, 3]
        height = float(np.degrees(np.arcsin(centre[2] / np.linalg.norm(centre))))
        scale = (drawer.scales[1],) * 2
        settings = ViewSettings(
            orbit, FRAMES // 2, config.steps, scale, height, told.azimuth_deg, told.prompt, config.size, 1.0, 1.0, 0.0
        )
        views = drawn_views(drawer, picture, settings, seeded(orbit), lambda *_: None)
        found.append(views.permute(0, 2, 3, 1).numpy())
    return np.stack(found)


def truth_of(truth: RenderedOrbits) -> np.ndarray:
    """(G, F / 2, H, W, 3): every second true frame of each orbit."""
    return np.stack([truth.rgb[rows[::2]] for rows in truth.groups()]).astype(np.float32) / 255


def quarter(views: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Nearness of every second frame (F / 2, H, W, 3), behind the first, to the truth."""
    error = np.square(views[1:] - true[1:]).mean(axis=(1, 2, 3))
    return {"psnr_quarter": float(np.mean(-10 * np.log10(np.maximum(error, 1e-10))))}


def parameters_of(objective: OrbitObjective) -> int:
    """How many numbers learn."""
    return sum(p.numel() for module in objective.modules.values() for p in module.parameters())


def weights_of(prior: str) -> Path | None:
    """The folder of weights of orbits that comes with a prior."""
    path = beside_weights(prior, "orbit")
    return path if (path / MANIFEST).is_file() else None


def objective_of(name: str, prior: str, seed: int) -> OrbitObjective:
    """The objective of a setting, on weights of its own."""
    base = load_prior(prior)
    if not isinstance(base, StableDiffusionPrior):
        raise InputError(f"--prior {prior}: orbits are learnt by a Stable Diffusion prior of single images")
    if name == SCRATCH:
        fresh = random_unet_like(base.network, seed)  # type: ignore[arg-type]
        base = base.with_network(fresh, base.prediction_type)
    if name == SHIPPED and (folder := weights_of(prior)):
        return OrbitObjective(OrbitConfig(), load_orbits(folder, base))
    whole = name in (SCRATCH, PRIOR)
    model = OrbitConfig(trained="all" if whole else "adapter", temporal=TemporalConfig(joint=name == JOINT))
    kind = ApartPrior if name == APART else OrbitPrior
    return OrbitObjective(model, kind(base, model.temporal, FRAMES, seed=seed, frozen=False))


def drawn_orbits(objective: OrbitObjective, heldout: OrbitClips, config: OrbitsBench, seed: int) -> np.ndarray:
    """(G, F, H, W, 3) in [0, 1], a few orbits at once."""
    parts = []
    for indices in np.array_split(np.arange(len(heldout)), max(1, len(heldout) // 4)):
        batch = heldout.batch(indices, None)
        parts.append(objective.drawn(batch, config.steps, config.guidance, seed + int(indices[0])))
    return torch.cat(parts).permute(0, 1, 3, 4, 2).cpu().numpy()


@torch.no_grad()
def measured(truth: RenderedOrbits, orbit: int, views: np.ndarray, eyes: FeatureMaps) -> dict[str, float]:
    """Of one drawn orbit (F, H, W, 3): nearness to the truth behind the first frame, disagreement, motion."""
    true = truth.rgb[truth.groups()[orbit]].astype(np.float32) / 255
    error = np.square(views[1:] - true[1:]).mean(axis=(1, 2, 3))
    maps = [eyes(2 * torch.tensor(one[1:]).permute(0, 3, 1, 2).float() - 1) for one in (views, true)]
    apart = [
        (torch.nn.functional.normalize(a, dim=1) - torch.nn.functional.normalize(b, dim=1)).square().sum(1).mean()
        for a, b in zip(*maps, strict=True)
    ]
    moved = motion((255 * views).round().astype(np.uint8)) / max(motion((255 * true).astype(np.uint8)), 1e-6)
    return {
        "psnr": float(np.mean(-10 * np.log10(np.maximum(error, 1e-10)))),
        **quarter(views[::2], true[::2]),
        "feature_distance": float(torch.stack(apart).mean()),
        "disagreement": disagreement(truth, orbit, views),
        "motion": moved,
    }


def disagreement(truth: RenderedOrbits, orbit: int, views: np.ndarray) -> float:
    """Mean absolute difference in colour between neighbouring views (F, H, W, 3) at points of the true surface that
    both show, by true depth; in [0, 1]."""
    rows, found = truth.groups()[orbit], []
    pictures = torch.tensor(views).float()
    depth = torch.from_numpy(truth.depth_m[rows].astype(np.float32))
    for here in range(len(rows)):
        there = (here + 1) % len(rows)
        seen = depth[here] > 0
        points = truth.camera(rows[here]).unproject(depth[here][None])[0][seen]
        pixel, z = (part[0] for part in truth.camera(rows[there]).project(points))
        inside = ((pixel > 0) & (pixel < views.shape[1])).all(dim=1)
        z_there = sample_pixels(depth[there][..., None], pixel)[:, 0]
        both = inside & ((z - z_there).abs() < BEHIND) & (z_there > 0)
        if bool(both.any()):
            other = sample_pixels(pictures[there], pixel[both])
            found.append((pictures[here][seen][both] - other).abs().mean(dim=1))
    return float(torch.cat(found).mean()) if found else 0.0


def summary(records: list[dict[str, float]]) -> dict[str, Any]:
    """Means with their intervals over orbits."""
    return {name: bootstrapped([record[name] for record in records]) for name in records[0]}


def claims(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """The card's three claims, and ours of joint frames, as paired differences and ratios over the same orbits."""

    def values(setting: str, name: str) -> np.ndarray:
        return np.array([record[name] for record in found[setting]])

    several = {}
    if SEVERAL in found:
        several["several_over_joint_db"] = bootstrapped(values(SEVERAL, "psnr_quarter") - values(JOINT, "psnr_quarter"))
    return {
        **several,
        "prior_over_scratch_db": bootstrapped(values(PRIOR, "psnr") - values(SCRATCH, "psnr")),
        "adapter_over_scratch_db": bootstrapped(values(ADAPTER, "psnr") - values(SCRATCH, "psnr")),
        "joint_over_adapter_db": bootstrapped(values(JOINT, "psnr") - values(ADAPTER, "psnr")),
        "disagreement_of_independent": ratio(values(ADAPTER, "disagreement"), values(APART, "disagreement")),
        "curated_motion_of_mixed": ratio(values(CURATED, "motion"), values(MIXED, "motion")),
    }
