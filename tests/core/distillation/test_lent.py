"""Students in the network of a prior of several views: which fit, which are told why not."""

from __future__ import annotations

import copy

import pytest
import torch

from unproject.core.distillation.arcflow import Mixture
from unproject.core.distillation.kinds import Full, Told
from unproject.core.distillation.lent import misfit, seeing_views
from unproject.core.distillation.quest import Quantised
from unproject.core.distillation.speedupnet import NegativeAdapter
from unproject.core.distillation.student import Student
from unproject.core.priors import MultiViewPrior, load_prior
from unproject.core.priors.base import Recommended
from unproject.core.priors.multiview import MultiViewUNet
from unproject.utils.errors import InputError


@pytest.fixture(scope="module")
def prior(tiny_folders):
    return load_prior(tiny_folders["sd"])


@pytest.fixture(scope="module")
def many(prior):
    """The prior inflated, with cameras that count."""
    views = MultiViewUNet(copy.deepcopy(prior.network))
    with torch.no_grad():
        views.camera_embedding[2].weight.normal_(generator=torch.Generator().manual_seed(1))
    return MultiViewPrior(copy.copy(prior.pipe), views, "tiny-mv", frames=2)


def test_a_student_sees_views_and_is_asked_as_it_says(prior, many) -> None:
    student = Student(prior, Full()).prior
    student.name, student.recommended = "tiny/fast", Recommended(1.0, 4, solver="lcm", distilled=True, step_counts=(4,))
    made = seeing_views(many, student)
    assert made.recommended is student.recommended and made.name == "tiny-mv with tiny/fast"
    assert many.name == "tiny-mv" and made.network is not student.network and made.frames == 2
    generator = torch.Generator().manual_seed(2)
    x, cameras = torch.randn(2, *many.latent_shape, generator=generator), torch.randn(2, 16, generator=generator)
    rows = many.encode_text(["a dog"] * 2).with_rows(cameras=cameras)["cond"]
    with torch.no_grad():
        answers = [one.predict(x, torch.tensor([300.0] * 2), rows) for one in (many, made)]
        plain = student.predict(x, torch.tensor([300.0] * 2), prior.encode_text(["a dog"] * 2)["cond"])
    assert torch.equal(*answers) and not torch.allclose(answers[0], plain, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (Told(), "told a guidance scale"),
        (NegativeAdapter(), "reads its negative prompt"),
        (Quantised(times=1, runs=1), "inputs rounded row by row"),
        (Mixture(2, 2), "answers with something else"),
        (Full(path="flow"), "answers with something else"),
    ],
)
def test_students_that_do_not_fit_are_told_why(prior, many, kind, told: str) -> None:
    student = Student(prior, kind).prior
    assert told in misfit(many, student)
    with pytest.raises(InputError, match=f"{told}.*no place for; take an adapter"):
        seeing_views(many, student)
