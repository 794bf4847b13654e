"""A step in parts: chosen by size, the same run, and smaller parts after memory ran out."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from unproject.core.priors import GaussianMixturePrior
from unproject.generate.guides import make_guide
from unproject.generate.optimise import Optimisation, OptimiseConfig
from unproject.generate.step_memory import LEAST_RAYS, StepMemory
from unproject.pipelines.text_to_shape import MeshRecipe
from unproject.utils.configs import load_config
from unproject.utils.errors import InputError, UnprojectError
from unproject.utils.ramps import Moment

SIDE = 16  # four views of 256 rays
RECIPE = {
    "score": {"guidance": 1.0, "rescale": 0.0},
    "optimise": {
        "steps": 3,
        "sizes": [[0, SIDE]],
        "guided_px": SIDE,
        "checkpoint_every": 0,
        "losses": {"opacity": [1.0], "orientation": [1.0], "eikonal": [1.0]},
        "shape": {
            "volume": {
                "occupancy_from": 0.3,
                "field": {"grid": {"sides": [5, 9], "starts": [0, 0]}},
                "rays": {"step": 0.1},
            }
        },
    },
}


def begun(step_memory_gb: float = 2.0, **changes: Any) -> Optimisation:
    recipe = load_config(MeshRecipe, RECIPE, **changes)
    prior = GaussianMixturePrior(torch.full((1, 3, SIDE, SIDE), 0.2), torch.tensor([0.5]))
    guide = make_guide(recipe.score, prior, "a box", None, recipe.optimise.views.views)
    return Optimisation(recipe.optimise, guide, 1, step_memory_gb=step_memory_gb)


def parameters(work: Optimisation) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in work.shape.named_parameters()}


@pytest.fixture(scope="module")
def whole() -> Optimisation:
    """The run with everything in one part."""
    work = begun()
    work.run()
    return work


def test_a_run_in_parts_is_the_same_run(whole: Optimisation, monkeypatch: pytest.MonkeyPatch) -> None:
    work, sizes = begun(step_memory_gb=1e-6), []
    render = work.shape.render

    def seen(*given: Any) -> Any:
        sizes.append((work.shape.rays_at_once, work.guide.score.images_at_once))
        return render(*given)

    monkeypatch.setattr(work.shape, "render", seen)
    work.run()
    assert sizes == [(LEAST_RAYS, None)] * 3
    assert work.nfe == whole.nfe > 0
    torch.testing.assert_close(parameters(work), parameters(whole), rtol=1e-5, atol=1e-6)
    assert work.shape.rays_at_once is None, "what comes later is not in parts"


def refusing(work: Optimisation, most: int, monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """Lets a device run out of memory with more than `most` rays at once; the tries."""
    render, tries = work.shape.render, []

    def narrow(*given: Any) -> Any:
        at_once = work.shape.rays_at_once
        tries.append(at_once)
        if at_once is None or at_once > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return render(*given)

    monkeypatch.setattr(work.shape, "render", narrow)
    return tries


def test_a_step_that_does_not_fit_is_made_again_in_smaller_parts(
    whole: Optimisation, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = begun()
    tries = refusing(work, 600, monkeypatch)
    with pytest.warns(UserWarning, match="step 0: out of memory; it is made again with at most .* GB"):
        work.run()
    assert len(tries) == 2 + 2 and LEAST_RAYS <= tries[-1] <= 600, "one failure, and none after it"
    assert work.nfe == whole.nfe and len(work.history) == 3
    torch.testing.assert_close(parameters(work), parameters(whole), rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(work.history, whole.history, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6)


def test_what_never_fits_is_told_once_with_the_next_smaller_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    work = begun()
    refusing(work, 0, monkeypatch)
    monkeypatch.setattr(work.guide.score.prior, "smaller_setting", lambda: "use --offload model")
    told = "step 0: out of memory with one render and 256 rays at a time; use --offload model"
    with warnings.catch_warnings(), pytest.raises(UnprojectError, match=told):
        warnings.simplefilter("ignore")
        work.run()


def test_other_faults_are_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    work, asked = begun(), []

    def broken(*_: Any) -> Any:
        asked.append(1)
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(work.shape, "render", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        work.run()
    assert len(asked) == 1


def test_parts_follow_from_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """3 GB for one image: not whole, so by block, one at a time; 200 MB for a row of the network."""
    work = begun()
    score, by_block = work.guide.score, []
    monkeypatch.setattr(score.prior, "encode_bytes", lambda h, w, b=False: int(1.8e9 if b else 3e9))
    monkeypatch.setattr(score.prior, "row_bytes", lambda h, w: int(2e8))
    monkeypatch.setattr(score.prior, "encode_by_block", by_block.append)
    monkeypatch.setattr(work.shape, "ray_bytes", lambda channels: 100_000)
    memory = StepMemory(work.shape, [score], 2.0)
    memory.fit(4, 64, 512, ("rgb", "alpha", "depth"))
    assert (score.images_at_once, work.shape.rays_at_once, score.prior.rows_at_once) == (1, 20_000, 10)
    assert by_block == [True]
    memory.budget = 3.1e9
    memory.fit(4, 64, 512, ("rgb", "alpha", "depth"))
    assert (score.images_at_once, work.shape.rays_at_once, score.prior.rows_at_once, by_block[-1]) == (
        1,
        31_000,
        15,
        False,
    )
    memory.release()
    assert (score.images_at_once, work.shape.rays_at_once, score.prior.rows_at_once) == (None, None, None)
    with pytest.raises(InputError, match="step_memory_gb=0 must be above 0"):
        StepMemory(work.shape, [score], 0)


def test_groups_fall_when_renders_grow() -> None:
    config = OptimiseConfig(
        steps=10, groups=((0.5, 1),), views=load_config(MeshRecipe, "text-to-mesh/toybox").optimise.views
    )
    wide = load_config(MeshRecipe, "text-to-mesh/stable-diffusion").optimise
    seen = [wide.views_at(Moment(step, wide.steps)).groups for step in (0, 4999, 5000, 9999)]
    assert seen == [2, 2, 1, 1]
    assert wide.size_at(Moment(4999, wide.steps)) == 64 and wide.size_at(Moment(5000, wide.steps)) == 256
    assert config.views_at(Moment(0, 10)) == config.views
    with pytest.raises(InputError, match=r"groups=.* must be"):
        OptimiseConfig(groups=((0.5, 0),))
