"""Splats as samples: copies look together as one did, dead ones go to live ones, faint ones tremble."""

from __future__ import annotations

import pytest
import torch

from unproject.geometry.shapes import GaussianConfig, Gaussians
from unproject.geometry.splats import GaussianCloud
from unproject.geometry.splats.relocation import RelocationConfig, draw_relocation, shared_values, tremble
from unproject.utils.errors import InputError
from unproject.utils.ramps import Moment
from unproject.utils.seeds import generator


@pytest.mark.parametrize(("opacity", "copies"), [(0.9, 2), (0.3, 3), (0.97, 7), (0.5, 1)])
def test_copies_look_together_as_one_did(opacity: float, copies: int) -> None:
    """Equal light in the middle, and an equal integral along a line of 1 - prod (1 - o' G): the paper's two demands."""
    part, scales = shared_values(torch.tensor([opacity]), torch.tensor([[0.4, 0.2, 0.1]]), torch.tensor([copies]))
    assert (1 - float(part)) ** copies == pytest.approx(1 - opacity, rel=1e-4)
    x = torch.linspace(-6, 6, 20_001, dtype=torch.float64)

    def profile(o: float, s: float, n: int) -> float:
        return float(torch.trapezoid(1 - (1 - o * torch.exp(-0.5 * (x / s) ** 2)) ** n, x))

    before = torch.trapezoid(opacity * torch.exp(-0.5 * (x / 0.4) ** 2), x)
    assert profile(float(part), float(scales[0, 0]), copies) == pytest.approx(float(before), rel=1e-4)
    torch.testing.assert_close(scales / scales[:, :1], torch.tensor([[1.0, 0.5, 0.25]]))


def test_dead_ones_go_where_opacity_is_and_their_number_grows() -> None:
    config = RelocationConfig(growth=1.2, most=110, least_opacity=0.01)
    opacities = torch.cat([torch.full((20,), 0.001), torch.full((70,), 0.05), torch.full((10,), 0.9)])
    change = draw_relocation(config, opacities, generator(1))
    assert change is not None and len(change.kept) + len(change.sources) == 110
    assert int(change.kept.min()) >= 20 and int(change.sources.min()) >= 20
    assert not set(change.kept.tolist()) & set(change.sources.tolist())
    times = torch.bincount(change.sources, minlength=100)
    assert (times[change.sources] == change.copies).all() and (change.copies > 1).all()
    assert int((times[90:] - 1).clamp_min(0).sum()) > 15  # 10 of opacity .9 are drawn far more often than 70 of .05
    assert draw_relocation(config, torch.zeros(5), generator(1)) is None
    whole = draw_relocation(RelocationConfig(growth=1.0), torch.full((5,), 0.5), generator(1))
    assert whole is not None and whole.kept.tolist() == [0, 1, 2, 3, 4] and not len(whole.sources)


def test_only_faint_ones_tremble_and_along_their_shape() -> None:
    count = 4000
    cloud = GaussianCloud.from_values(
        torch.zeros(2 * count, 3), torch.tensor([[0.4, 0.2, 0.1]]).expand(2 * count, 3),
        torch.tensor([[0.5**0.5, 0, 0, 0.5**0.5]]).expand(2 * count, 4),  # a quarter about z
        torch.cat([torch.full((count,), 0.005), torch.full((count,), 0.6)]), torch.zeros(2 * count, 1, 3),
    )  # fmt: skip
    steps = tremble(cloud, 3.0, generator(2))
    wanted = 3.0 * 0.5 * torch.tensor([0.04, 0.16, 0.01])  # strength, sigmoid(0), variances in the world's axes
    torch.testing.assert_close(steps[:count].std(0), wanted, rtol=0.06, atol=0)
    assert float(steps[count:].abs().max()) < 1e-9


def gaussians(**changes: object) -> Gaussians:
    rules = RelocationConfig(start=0.0, every=2, growth=1.5, most=60, **changes)  # type: ignore[arg-type]
    config = GaussianConfig(count=30, degree=1, opacity=0.5, strategy="mcmc", mcmc=rules, extent=2.0, mean_lr_end=0.25)
    return Gaussians(config, generator(4))


def test_a_relocation_leaves_what_is_drawn_nearly_alone() -> None:
    made = gaussians(noise=0.0)
    with torch.no_grad():
        made.logits[:6] = -9.0
    from unproject.geometry.cameras import Camera

    camera = Camera.orbit([20.0, 140.0], 10.0, 3.0, 34.0, 24, 20)
    before = made.render(camera).alpha.detach()
    change = made.after_step(Moment(2, 100))
    assert change is not None and len(made.means) == 45 == len(change) and len(change.split) == 45 - len(change.kept)
    assert float((made.render(camera).alpha.detach() - before).abs().mean()) < 0.03
    assert made.after_step(Moment(3, 100)) is None


def test_places_tremble_by_the_rate_of_the_moment() -> None:
    """At the end of the run the means move at a quarter of their rate, and so does the noise."""
    moves = []
    for step in (3, 99):
        made = gaussians(noise=1e4)
        made.config = made.config.__class__(**{**vars(made.config), "mcmc": RelocationConfig(every=0, noise=1e4)})
        with torch.no_grad():
            made.logits.fill_(-6.0)
        before = made.means.detach().clone()
        made.after_step(Moment(step, 100))
        moves.append(float((made.means.detach() - before).norm()))
    assert moves[1] / moves[0] == pytest.approx(0.25 ** (96 / 100), rel=0.2)
    assert list(gaussians().rates(Moment(50, 100))) == [0.5, 1, 1, 1, 1, 1]


def test_times_and_limits() -> None:
    rules = RelocationConfig(start=0.1, stop=0.5, every=10)
    assert [s for s in range(101) if rules.relocates(Moment(s, 100))] == [20, 30, 40]
    with pytest.raises(InputError, match=r"growth=0.5"):
        RelocationConfig(growth=0.5)
