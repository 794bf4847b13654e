"""Floors of the toy-FID: sets that do not meet, and renders that rows share."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from unproject.bench import toy_fid_floor
from unproject.bench.toy_fid_floor import USED, VIEWS, Asked, FloorBench, Plan, Renders


@pytest.mark.parametrize("name", [name for name, asked in (USED | VIEWS).items() if asked.kind == "object"])
def test_sets_meet_neither_each_other_nor_the_reference(name: str) -> None:
    asked = (USED | VIEWS)[name]
    plan = Plan.of(asked, FloorBench(share=0.2))
    numbers = [number for part in (plan.reference, *plan.sets) for number in part]
    assert len(numbers) == len(set(numbers)) and len(plan.sets) == 3
    assert all(len(part) * asked.views >= plan.pictures for part in plan.sets)
    drawn = set(range(plan.pictures)) if asked.apart else set()
    assert not drawn & set(plan.reference)


def test_each_object_is_rendered_once_in_the_most_views_and_rows_read_what_they_would_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rendered = Counter[tuple[int, int]]()

    def render(job: Any, number: int, count: int) -> dict[str, np.ndarray]:
        rendered[job.size, number] += count
        shades = [10 * number + view for view in range(count)]
        return {"rgb": np.stack([np.full((4, 4, 3), shade, np.uint8) for shade in shades])}

    monkeypatch.setattr(toy_fid_floor, "render_group", render)
    monkeypatch.setattr(toy_fid_floor, "features", lambda judge, images: 255 * images.mean((2, 3)))
    first = Plan(Asked(2, 2, reference_views=4), 2, (0, 1), ((2, 3), (4, 5)))
    second = replace(first, reference=(5, 2), sets=((1, 0), (3, 4)))
    alone = Renders(None, [second])  # type: ignore[arg-type]
    seen = Renders(None, [first, second])  # type: ignore[arg-type]
    for plan in (first, second):
        for numbers, views in ((plan.reference, 4), *((part, 1) for part in plan.sets)):
            found = seen.features(plan.asked, numbers, views)
            wanted = [10.0 * number + view for number in numbers for view in range(views)]
            assert found.values[:, 0].round().tolist() == wanted
            assert found.objects.tolist() == [i for i in range(len(numbers)) for _ in range(views)]
    assert rendered == {(64, n): 4 if n in (0, 1, 2, 5) else 1 for n in range(6)}
    torch.testing.assert_close(
        alone.features(second.asked, (5, 2), 4).values, seen.features(second.asked, (5, 2), 4).values
    )
