"""What a person wants to know of splats before drawing them: how many, how large, how opaque, and what is broken."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .cloud import GaussianCloud
from .drawing import ball_of
from .kernels_project import ALPHA_MIN

SHARES = (0.01, 0.5, 0.99)
NEEDLE = 20.0  # longest axis over the middle one
LARGE = 0.1  # of the radius


def facts_of(cloud: GaussianCloud) -> dict[str, Any]:
    """Plain values for JSON; statistics are of splats without broken numbers.

    faint: share below the opacity of 1/255 that is never drawn. needles: share at least 20 times as long as wide. ball:
    around 98 % of all opacity; strays: share of splats beyond twice its radius.
    """
    facts: dict[str, Any] = {
        "splats": len(cloud),
        "sh_degree": cloud.degree,
        "render_mode": cloud.mode,
        "broken": cloud.broken(),
    }
    cloud = cloud[cloud.finite]
    if not len(cloud):
        return facts
    centre, radius = ball_of(cloud)
    scales = cloud.scales.sort(dim=1, descending=True).values
    apart = (cloud.means - centre).norm(dim=1)
    return facts | {
        "bounds_low": cloud.means.amin(0).tolist(),
        "bounds_high": cloud.means.amax(0).tolist(),
        "ball": {"centre": centre.tolist(), "radius": radius},
        "strays": _share(apart > 2 * radius),
        "opacity": {**_spread(cloud.opacities), "faint": _share(cloud.opacities < ALPHA_MIN)},
        "scale": {
            **_spread(scales[:, 0]),
            "large": _share(scales[:, 0] > LARGE * radius),
            "needles": _share(scales[:, 0] > NEEDLE * scales[:, 1]),
        },
        "mean_srgb": cloud.colors.clamp(0, 1).mean(0).tolist(),
    }


def _share(mask: Tensor) -> float:
    return float(mask.double().mean())


def _spread(values: Tensor) -> dict[str, float]:
    low, median, high = torch.quantile(values.double(), torch.tensor(SHARES, dtype=torch.float64)).tolist()
    return {"percentile_1": low, "median": median, "percentile_99": high}
