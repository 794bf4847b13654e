"""What the papers behind the heads claim, as ratios and differences of what the table of heads measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .head_lab import COLOURS, PRIOR, RANDOM, Record
from .head_trials import CAMERA, DEPTH, METRES, ONE_STEP, PRIMEDEPTH, REFINED
from .head_trials_drawn import INVERSE, MATCH, MATERIALS, SENSOR
from .intervals import digits

FURTHER = {  # the experiment that measures a card at length
    DEPTH: "geometry-heads",
    PRIMEDEPTH: "preimage-depth",
    ONE_STEP: "refined-normals",
    REFINED: "refined-normals",
    CAMERA: "calibrate",
    METRES: "calibrate",
    MATCH: "match",
    MATERIALS: "materials",
    INVERSE: "materialfusion",
    SENSOR: "sim2real",
}


def claims(records: Sequence[Record]) -> list[dict[str, Any]]:
    """A row for each claim: what was measured, what the card wants, whether it holds, and where more is measured."""

    def mean(head: str, source: str, key: str = "error") -> float:
        return float(np.mean([r[key] for r in records if (r["head"], r["source"]) == (head, source)]))

    rows: list[dict[str, Any]] = []

    def claim(head: str, card: str, said: str, measured: float, least: float = -np.inf, most: float = np.inf) -> None:
        wanted = [f">= {least:g}"] * (least > -np.inf) + [f"<= {most:g}"] * (most < np.inf)
        rows.append(
            {
                "head": head,
                "card": card,
                "claim": said,
                "measured": {"value": digits(measured, 4)},
                "wanted": " and ".join(wanted),
                "holds": bool(least <= measured <= most),
                "experiment": FURTHER[head],
            }
        )

    for head, card in ((DEPTH, "Marigold"), (ONE_STEP, "StableNormal"), (REFINED, "StableNormal")):
        for other in (RANDOM, COLOURS):
            claim(head, card, f"error over that of {other}", mean(head, PRIOR) / mean(head, other), most=1)
    for other in (RANDOM, COLOURS):
        share = mean(PRIMEDEPTH, PRIOR) / mean(PRIMEDEPTH, other)
        claim(PRIMEDEPTH, "PrimeDepth", f"error over that of {other}", share, most=0.85)
    steady = mean(REFINED, PRIOR, "variance") / mean(REFINED, PRIOR, "variance_of_sampler")
    claim(REFINED, "StableNormal", "variance over that of a sampler", steady, most=0.5)
    fewer = mean(REFINED, PRIOR, "calls_of_ensemble") / mean(REFINED, PRIOR, "calls")
    claim(REFINED, "StableNormal", "times fewer calls than the sampler's ensemble", fewer, least=20)
    usual = mean(CAMERA, PRIOR) / mean(CAMERA, PRIOR, "constant")
    claim(CAMERA, "DM-Calib", "error over that of the usual field of view", usual, most=0.5)
    true, said, blind = (mean(METRES, PRIOR, key) for key in ("error", "predicted_camera", "no_camera"))
    claim(METRES, "DM-Calib", "error with the true camera over that with the predicted one", true / said, most=1)
    claim(METRES, "DM-Calib", "error with the predicted camera over that without one", said / blind, most=1)
    points = 100 * (mean(MATCH, COLOURS) - mean(MATCH, PRIOR))
    claim(MATCH, "Two features", "points of PCK above colours", points, least=15)
    parts = min(mean(MATCH, PRIOR), mean(MATCH, PRIOR, "second_encoder"))
    claim(MATCH, "Two features", "error of the fusion over that of its better part",
          mean(MATCH, PRIOR, "fused") / max(parts, 1e-9), most=1)  # fmt: skip
    seams = mean(MATERIALS, PRIOR, "seams")
    claim(MATERIALS, "StableMaterials", "differences across the edges over those inside", seams, 0.85, 1.15)
    for key, name, least in (("albedo_psnr", "albedo", 1.5), ("relit_psnr", "other light", 1.0)):
        gain = mean(INVERSE, PRIOR, key) - mean(INVERSE, COLOURS, key)
        claim(INVERSE, "MaterialFusion", f"dB of {name} above no prior", gain, least=least)
    noise = mean(SENSOR, PRIOR) / mean(SENSOR, COLOURS)
    claim(SENSOR, "Stable-Sim2Real", "distance over that of hand-made noise, first stage", noise, most=0.5)
    return rows
