"""Heads that learnt as adapters: they begin as whole ones, files hold what is their own, training leaves the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from unproject.core.distillation.consistency import Consistent
from unproject.core.distillation.student import Student
from unproject.core.distillation.teacher import Teacher
from unproject.core.priors import StableDiffusionPrior
from unproject.core.training.adapters import own_weights
from unproject.tasks.alternatives import load_alternative
from unproject.tasks.data import GeometryData
from unproject.tasks.geometry_head import GeometryHead, HeadConfig
from unproject.tasks.heads import load_head
from unproject.tasks.material_train import MaterialConsistency, ToldAdapters
from unproject.tasks.materials import MaterialConfig, MaterialGenerator, MaterialPrior, load_materials
from unproject.tasks.metric_head import MetricConfig, MetricHead
from unproject.tasks.one_step import OneStepConfig, OneStepHead
from unproject.tasks.preimage_head import PreimageConfig, PreimageHead
from unproject.tasks.refine import RefineConfig, RefinedHead
from unproject.tasks.refiner import RefinerConfig
from unproject.tasks.train import HeadObjective, LossConfig
from unproject.utils.errors import InputError

RANK = 2


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_call(head: Any) -> Tensor:
    z, x = (torch.randn(1, 4, 8, 8, generator=seeded(k)) for k in (1, 2))
    start = x if not isinstance(head, GeometryHead) else x.repeat(1, head.groups, 1, 1)
    found: Tensor = head.predict(z, start)
    return found


def metres(head: MetricHead) -> Tensor:
    K = torch.tensor([[[30.0, 0, 16], [0, 30, 16], [0, 0, 1]]])
    return head.metres(torch.rand(1, 3, 32, 32, generator=seeded(3)), K)


def drawn(make: MaterialGenerator) -> Tensor:
    return make("tiles", seed=3).maps.albedo


def plain(prior: StableDiffusionPrior, rank: int) -> GeometryHead:
    return GeometryHead.from_prior(prior, HeadConfig(kind="sample", timestep=20, rank=rank))


def refined(prior: StableDiffusionPrior, rank: int) -> RefinedHead:
    return RefinedHead(GeometryHead.from_prior(prior), RefineConfig(steps=2, rank=rank))


def from_preimage(prior: StableDiffusionPrior, rank: int) -> PreimageHead:
    return PreimageHead(prior, PreimageConfig(refiner=RefinerConfig(out_channels=8), rank=rank))


Make = Callable[[StableDiffusionPrior, int], Any]
KINDS: dict[str, tuple[Make, Callable[[Any], Tensor]]] = {
    "plain": (plain, one_call),
    "one-step": (lambda prior, rank: OneStepHead(prior, OneStepConfig(rank=rank)), one_call),
    "refined": (refined, one_call),
    "preimage": (from_preimage, one_call),
    "metric": (lambda prior, rank: MetricHead(prior, MetricConfig(rank=rank)), metres),
}


def modules_of(head: Any) -> dict[str, nn.Module]:
    return {"unet": head.unet} if isinstance(head, GeometryHead) else head.modules()


def stir(modules: dict[str, nn.Module]) -> None:
    with torch.no_grad():
        for part in modules.values():
            for name, parameter in own_weights(part).items():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=seeded(len(name))))


@pytest.mark.parametrize("kind", KINDS)
def test_a_lean_head_begins_as_the_whole_one_and_its_own_weights_are_few(tiny_prior, kind: str) -> None:
    make, asked = KINDS[kind]
    lean, whole = make(tiny_prior, RANK), make(tiny_prior, 0)
    torch.testing.assert_close(asked(lean), asked(whole), rtol=1e-4, atol=1e-4)
    one, other = (
        sum(p.numel() for part in modules_of(head).values() for p in own_weights(part).values())
        for head in (lean, whole)
    )
    assert one < (0.9 if kind == "preimage" else 0.35) * other  # the refiner of a preimage learns whole


@pytest.mark.parametrize("kind", KINDS)
def test_its_files_hold_its_own_weights_alone_and_bring_it_back(head_folder, kind: str) -> None:
    (make, asked), prior = KINDS[kind], load_head(head_folder).prior
    head, place = make(prior, RANK), head_folder.parent / f"lean-{kind}"
    stir(modules_of(head))
    told = head_folder.name if kind == "refined" else "tiny"
    if kind == "refined":
        head.first = load_head(head_folder)
    head.save(place, told)
    load: dict[str, Any] = {"plain": GeometryHead.load, "metric": MetricHead.load}
    back = load[kind](place) if kind in load else load_alternative(place, head.config.targets[0])
    torch.testing.assert_close(asked(back), asked(head), rtol=0.05, atol=0.05)  # fp16 on the disk
    names = [path for path in place.glob("*.safetensors") if path.name != "prompt.safetensors"]
    with safe_open(names[0], "pt") as stored:
        assert not any(key.endswith(".original") for key in stored.keys())  # noqa: SIM118
    again = back.save(head_folder.parent / f"again-{kind}", told)
    assert (again / names[0].name).stat().st_size == names[0].stat().st_size  # frozen as it is, it is whole


def test_training_a_lean_head_leaves_the_lent_weights_alone(tiny_prior, planes) -> None:
    head = plain(tiny_prior, RANK)
    objective = HeadObjective(LossConfig(loss="regression"), head)
    lent = {n: p.clone() for n, p in head.unet.named_parameters() if n not in own_weights(head.unet)}
    assert lent
    batch = GeometryData([planes()]).batch([0, 1, 2], None)
    for _ in range(2):
        objective.loss(batch, seeded(0), 0).loss.backward()
        with torch.no_grad():
            for parameter in own_weights(head.unet).values():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
    assert all(bool((p == lent[n]).all()) for n, p in head.unet.named_parameters() if n in lent)
    learnt = [n for n, p in own_weights(head.unet).items() if p.grad is not None and bool(p.grad.any())]
    assert any(n.startswith("down_blocks") and n.endswith("down") for n in learnt)  # B is no longer 0


def test_a_lean_material_prior_goes_on_learning_as_adapters_and_is_told_a_scale(tiny_prior, tmp_path) -> None:
    prior = MaterialPrior.from_prior(tiny_prior, RANK)
    asked = MaterialGenerator(prior, MaterialConfig(2, 2.0))
    whole = MaterialGenerator(MaterialPrior.from_prior(tiny_prior), MaterialConfig(2, 2.0))
    torch.testing.assert_close(drawn(asked), drawn(whole), rtol=1e-4, atol=1e-4)
    student = Student(prior, ToldAdapters())
    own = own_weights(student.network)
    assert "time_embedding.cond_proj.weight" in own and not any(name.endswith(".original") for name in own)
    MaterialConsistency(student, Teacher(prior), Consistent(scale=(1.0, 4.0), grid=8))
    trained = {name for name, p in student.network.named_parameters() if p.requires_grad}
    assert trained == set(own)
    stir({"unet": student.network})
    make = MaterialGenerator(student.prior, MaterialConfig(4, 2.0, distilled=True, levels=8))
    tiny_prior.save(tmp_path / "tiny")
    back = load_materials(make.save(tmp_path / "fast", "tiny"))
    assert back.prior.guidance_embedded and not (tmp_path / "fast" / "unet").exists()
    torch.testing.assert_close(drawn(back), drawn(make), rtol=0, atol=2e-2)
    back.save(tmp_path / "again", "tiny")
    files = [tmp_path / name / "adapter.safetensors" for name in ("fast", "again")]
    assert files[0].stat().st_size == files[1].stat().st_size
    assert load_materials(asked.save(tmp_path / "slow", "tiny")).config == asked.config


def test_adapters_have_no_baseline_without_a_prior() -> None:
    from unproject.scripts.recipes import RECIPES

    values = {"train": [], "val": [], "start_from": "random", "head": {"rank": 4}}
    with pytest.raises(InputError, match="start_from=random: adapters of rank 4"):
        RECIPES["geometry-head"](values)
