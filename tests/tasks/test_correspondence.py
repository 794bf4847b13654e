"""Fused descriptors of a pair and the search in them: the paper's identities, exact shifts, limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers import Dinov2Config, Dinov2Model

from unproject.core.sampling.features import Look
from unproject.geometry.matching import cell_centres, cosines
from unproject.tasks.correspondence import (
    MatchConfig,
    Matcher,
    co_pca,
    described,
    fused,
    prior_features,
)
from unproject.tasks.encoders import DinoEncoder, Joined
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator

SMALL = MatchConfig(size=32)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


@pytest.mark.parametrize("counts", [(9, 14), (3, 2)], ids=["more cells than channels", "fewer"])
def test_all_components_leave_every_distance_as_it_was(counts):
    a, b = noise(counts[0], 6), noise(counts[1], 6, seed=1) + 3
    x, y = co_pca(a, b, 99)
    torch.testing.assert_close(torch.cdist(x, y), torch.cdist(a, b), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.cat([x, y]).mean(0), torch.zeros(x.shape[1]), rtol=0, atol=1e-5)


def test_components_are_common_to_both_and_fall_in_variance():
    """The first direction is that in which the two pictures lie apart; alone, each would have another one."""
    direction = F.normalize(noise(8, seed=3), dim=0)
    a, b = 0.1 * noise(40, 8) + 5 * direction, 0.1 * noise(30, 8, seed=1) - 5 * direction
    x, y = co_pca(a, b, 3)
    assert x.shape == (40, 3) and y.shape == (30, 3)
    assert abs(float(x[:, 0].mean() - y[:, 0].mean())) == pytest.approx(10, rel=0.02)
    deviations = torch.cat([x, y]).std(0)
    assert bool((deviations[:-1] >= deviations[1:]).all())


def test_nearest_fused_neighbour_has_the_largest_weighted_sum_of_cosines():
    a, b = noise(2, 5, 3, 4), noise(2, 7, 3, 4, seed=1)
    both = fused(a, b, 0.3)
    one, two = both.flatten(2).mT
    squared = torch.cdist(one, two).square()
    parts = [cosines(*part.flatten(2).mT) for part in (a, b)]
    wanted = 2 * 0.3**2 * (1 - parts[0]) + 2 * 0.7**2 * (1 - parts[1])
    torch.testing.assert_close(squared, wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(cosines(one, two).argmax(1), wanted.argmin(1))


def test_a_picture_matches_itself_everywhere(tiny_prior):
    picture = torch.rand(1, 3, 32, 32, generator=generator(2))
    for encoder in (None, lambda x: F.avg_pool2d(x, 4)):
        maps = described(tiny_prior, torch.cat([picture, picture]), SMALL, encoder)
        cells = maps.shape[2] * maps.shape[3]
        found = Matcher(maps, torch.ones(2, cells, dtype=torch.bool), window=0).mutual()
        torch.testing.assert_close(found.a, cell_centres(torch.arange(cells), maps.shape[3]).float())
        torch.testing.assert_close(found.b, found.a)
        assert float(found.cycle.max()) == 0 and float(found.score.min()) > 0.9999


def test_a_shift_is_found_exactly_away_from_the_edges():
    """Descriptors moved by (2, 1) cells: every point that stays inside is found there, and one between cells too."""
    base = F.interpolate(noise(1, 16, 6, 8), (12, 16), mode="bicubic")
    moved = base.roll((1, 2), (2, 3))
    matcher = Matcher(torch.cat([base, moved]), torch.ones(2, 12 * 16, dtype=torch.bool), window=0)
    places = torch.tensor([[3.5, 4.5], [9.5, 7.5], [5.5, 9.5]])
    found = matcher.moved(places)
    torch.testing.assert_close(found.b, places + torch.tensor([2.0, 1.0]))
    soft = replace(matcher, window=2, temperature=0.02).moved(places + torch.tensor([0.3, -0.2]))
    assert float((soft.b - places - torch.tensor([2.0, 1.0]) - torch.tensor([0.3, -0.2])).abs().max()) < 0.5
    assert bool((soft.spread > 0).all()) and float(soft.cycle.max()) < 0.5


def test_what_is_not_shown_is_never_found():
    maps = noise(2, 5, 4, 6)
    maps[1] = maps[0]
    shown = torch.ones(2, 24, dtype=torch.bool)
    shown[1, :12] = False  # its upper half
    matcher = Matcher(maps, shown, window=0)
    assert float(matcher.moved(torch.tensor([[1.5, 0.5]])).b[0, 1]) > 2
    assert float(matcher.mutual().b[:, 1].min()) > 2
    shown[0, 12:] = False
    assert bool((matcher.mutual().a[:, 1] < 2).all())


def test_what_is_near_an_edge_can_be_left_out():
    """Of identical pictures all cells but those within one of the grid's edges and of what is not shown."""
    maps = noise(1, 32, 5, 7).repeat(2, 1, 1, 1)
    shown = torch.ones(2, 35, dtype=torch.bool)
    shown[1, 2 * 7 + 5] = False
    found = Matcher(maps, shown, window=0).mutual(edge=1)
    wanted = [(x, y) for y in range(1, 4) for x in range(1, 6) if abs(x - 5) > 1]
    assert [(int(x), int(y)) for x, y in found.a.tolist()] == wanted


def test_there_and_back_tells_points_that_have_no_partner():
    maps = noise(2, 32, 4, 6)
    maps[1, :, :, 1:] = maps[0, :, :, :-1]  # moved to the right; the last column left the picture
    matcher = Matcher(maps, torch.ones(2, 24, dtype=torch.bool), window=0)
    assert float(matcher.moved(torch.tensor([[2.5, 1.5]])).cycle) == 0
    gone = matcher.moved(torch.tensor([[5.5, y + 0.5] for y in range(4)]))
    assert float(gone.score.max()) < 0.99 and float(gone.cycle.max()) > 1


def test_levels_are_weighed_the_finest_first(tiny_prior):
    pictures = torch.rand(2, 3, 32, 32, generator=generator(3))
    plain = prior_features(tiny_prior, pictures, replace(SMALL, dims=8))
    weighed = prior_features(tiny_prior, pictures, replace(SMALL, dims=8, level_weights=(1.0, 0.0)))
    assert plain.shape == (2, 16, 8, 8)
    assert float(weighed[:, :8].abs().max()) == 0  # the fine level comes first, and got the second weight
    torch.testing.assert_close(weighed[:, 8:], plain[:, 8:])
    with pytest.raises(InputError, match="level_weights has 3 numbers for 2 levels"):
        prior_features(tiny_prior, pictures, replace(SMALL, level_weights=(1.0, 1.0, 1.0)))


def test_alpha_is_the_prior_alone_at_one_and_the_encoder_alone_at_zero(tiny_prior):
    pictures = torch.rand(2, 3, 32, 32, generator=generator(4))
    encoder = lambda x: F.avg_pool2d(x, 8)  # noqa: E731
    alone = described(tiny_prior, pictures, SMALL)
    torch.testing.assert_close(described(tiny_prior, pictures, replace(SMALL, alpha=1.0), encoder), alone)
    other = described(tiny_prior, pictures, replace(SMALL, alpha=0.0), encoder)
    torch.testing.assert_close(other, F.normalize(encoder(2 * pictures - 1), dim=1))
    both = described(tiny_prior, pictures, SMALL, encoder)
    assert both.shape == (2, alone.shape[1] + 3, 8, 8)


def test_independent_noise_is_another_description(tiny_prior):
    pictures = torch.rand(1, 3, 32, 32, generator=generator(5)).repeat(2, 1, 1, 1)
    config = replace(SMALL, look=Look(500))
    shared = prior_features(tiny_prior, pictures, config)
    torch.testing.assert_close(shared[0], shared[1], rtol=1e-3, atol=1e-3)
    apart = prior_features(tiny_prior, pictures, replace(config, shared_noise=False))
    assert not torch.allclose(apart[0], apart[1], atol=0.1)


def test_the_square_is_a_multiple_of_what_the_network_takes(tiny_prior):
    assert MatchConfig().side(tiny_prior) == 64  # 15/8 of 32 px, in steps of 8
    assert MatchConfig(size=41).side(tiny_prior) == 40
    assert MatchConfig(size=1).side(tiny_prior) == 8


@pytest.mark.parametrize(("values", "told"), [({"alpha": 1.5}, "alpha=1.5"), ({"dims": 0}, "dims=0")])
def test_bad_settings_are_refused(values, told):
    with pytest.raises(InputError, match=told):
        MatchConfig(**values)


def test_levels_of_a_pyramid_are_joined_at_unit_length():
    fine, coarse = noise(1, 3, 4, 4), noise(1, 5, 2, 2)
    found = Joined(lambda x: [x, fine, coarse])(noise(1, 3, 8, 8))
    torch.testing.assert_close(found[:, :3], F.normalize(fine, dim=1))
    torch.testing.assert_close(found[:, 3:].norm(dim=1), torch.ones(1, 4, 4))


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7, mlp_ratio=2
    )
    folder = tmp_path_factory.mktemp("dino")
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        Dinov2Model(config).eval().save_pretrained(folder)
    return folder


def test_tokens_of_dino_are_those_of_its_last_block_without_the_class(dino):
    encoder = DinoEncoder.from_folder(dino, side=30)
    assert encoder.side == 28
    pictures = torch.rand(2, 3, 28, 28, generator=generator(6))
    found = encoder(2 * pictures - 1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    given = (pictures - mean[:, None, None]) / std[:, None, None]
    seen = []
    hook = encoder.model.encoder.layer[-1].register_forward_hook(lambda m, a, out: seen.append(out))
    with torch.no_grad():
        encoder.model(given)
    hook.remove()
    tokens = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    assert found.shape == (2, 16, 4, 4)
    torch.testing.assert_close(found[:, :, 1, 2], tokens[:, 1 + 4 + 2], rtol=1e-4, atol=1e-5)


def test_other_folders_are_no_dino(tmp_path):
    with pytest.raises(InputError, match="no DINOv2 in transformers' layout"):
        DinoEncoder.from_folder(tmp_path)
