"""Maps: encodings against the task codecs, fixed normals that turn with nothing, lines where things break, scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from unproject.tasks.codecs import DepthCodec, NormalCodec
from unproject.toybox.captions import MAP_WORDS
from unproject.toybox.dataset import RenderedSet, RenderJob, render_group, render_set
from unproject.toybox.maps import MAPS, MapPictures, camera_normals, fixed_normals, gradient_energy
from unproject.utils.errors import InputError

SIZE = 24


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> RenderedSet:
    folder = tmp_path_factory.mktemp("maps")
    places = render_set(RenderJob("room", "val", 1, SIZE + 8, maps=True), folder / "room", workers=1)
    return RenderedSet([render_set(RenderJob("object", "val", 2, SIZE, maps=True), folder / "object", workers=1)]), (
        RenderedSet(places)
    )


@pytest.fixture(scope="module")
def objects(rendered: tuple[RenderedSet, RenderedSet]) -> RenderedSet:
    return rendered[0]


def columns(objects: RenderedSet, view: int) -> dict[str, np.ndarray]:
    return MapPictures([(objects, ("albedo",))], SIZE).columns(view)


def to_torch(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))


@pytest.mark.parametrize(("kind", "space"), [("depth map", "linear"), ("disparity map", "disparity")])
def test_depth_is_shown_as_the_depth_codec_shows_it(objects: RenderedSet, kind: str, space: str) -> None:
    view = columns(objects, 1)
    seen = view["depth_m"] > 0
    shown, _ = DepthCodec(space=space).encode(to_torch(view["depth_m"])[:, None], torch.from_numpy(seen)[:, None])
    picture = MAPS[kind](view)
    expected = np.round((shown.permute(0, 2, 3, 1).numpy() + 1) * 127.5)
    assert np.abs(picture[seen].astype(float) - expected[seen]).max() <= 1
    assert seen.any() and not seen.all() and np.unique(picture[seen]).size > 20
    assert (picture[~seen] == (255 if kind == "depth map" else 0)).all()  # what is not there is far


def test_camera_normals_are_shown_as_the_normal_codec_shows_them(objects: RenderedSet) -> None:
    view = columns(objects, 2)
    seen = view["depth_m"] > 0
    given = to_torch(view["normal"] / 127).permute(0, 3, 1, 2)
    shown, _ = NormalCodec(frame="opencv").encode(given, torch.from_numpy(seen)[:, None])
    expected = (shown.permute(0, 2, 3, 1).numpy() + 1) * 127.5
    assert np.abs(MAPS["camera normal map"](view) - expected).max() < 1.6  # bytes are 1 / 127 apart, pictures 1 / 127.5


def test_fixed_normals_are_those_of_the_world_in_every_view() -> None:
    job = RenderJob("object", "val", 1, 16, maps=True)
    group = render_group(job, 4)
    for view in range(4):
        one = {k: v[view : view + 1] for k, v in group.items() if k != "records"}
        turned, c2w = fixed_normals(one), one["c2w"][0, :3, :3]
        back = np.einsum("ij,nhwi->nhwj", c2w, turned)
        np.testing.assert_allclose(back * [1, -1, -1], camera_normals(one), atol=1e-5)
        lengths = np.linalg.norm(turned, axis=-1)
        np.testing.assert_allclose(lengths[one["depth_m"] > 0], 1.0, atol=1e-5)
        assert (lengths[one["depth_m"] == 0] == 0).all()
    means = [
        fixed_normals({k: v[i : i + 1] for k, v in group.items() if k != "records"}).mean((0, 1, 2)) for i in (0, 2)
    ]
    assert (means[0][:2] * means[1][:2] < 0).all()  # opposite views see opposite sides
    assert (MAPS["normal map"](one)[one["depth_m"] == 0] == 128).all()


def flat(**changes: np.ndarray) -> dict[str, np.ndarray]:
    """A wall two pixels wide beside nothing, faced by the camera."""
    values = {
        "rgb": np.full((1, 2, 4, 3), 90, np.uint8),
        "depth_m": np.full((1, 2, 4), 2.0, np.float16),
        "normal": np.tile(np.array([0, 0, -127], np.int8), (1, 2, 4, 1)),
        "alpha": np.full((1, 2, 4), 255, np.uint8),
        "albedo": np.tile(np.arange(4, dtype=np.uint8)[:, None] * 20, (1, 2, 1, 3)),
        "material": np.full((1, 2, 4, 2), (51, 255), np.uint8),
        "segment": np.ones((1, 2, 4), np.uint16),
        "c2w": np.eye(4, dtype=np.float32)[None],
    }
    return values | changes


@pytest.mark.parametrize(
    ("name", "column", "value", "lined"),
    [
        ("nothing", "segment", 1, False),
        ("part", "segment", 2, True),
        ("small step", "depth_m", 2.05, False),
        ("step", "depth_m", 2.2, True),
        ("step back", "depth_m", 1.8, True),
        ("bend", "normal", (60, 0, -112), False),
        ("crease", "normal", (90, 0, -90), True),
        ("end", "depth_m", 0.0, False),
    ],
)
def test_lines_are_drawn_where_something_breaks(name: str, column: str, value: float, lined: bool) -> None:
    view = flat()
    view[column] = view[column].copy()
    view[column][:, :, 2:] = value
    drawing = MAPS["line drawing"](view)[0, :, :, 0]
    expected = np.full((2, 4), 255)
    expected[:, 1] = 0 if lined else 255
    np.testing.assert_array_equal(drawing, expected)


def test_flat_colours_are_means_of_parts_over_the_background() -> None:
    segment = np.array([[[1, 1, 3, 0]] * 2], np.uint16)
    alpha = np.array([[[255, 255, 255, 0]] * 2], np.uint8)
    drawn = MAPS["flat colours"](flat(segment=segment, alpha=alpha))[0, 0, :, 0]
    assert drawn.tolist() == [10, 10, 40, 90]


def test_albedo_and_material_keep_coverage() -> None:
    view = flat(alpha=np.array([[[255, 128, 0, 255]] * 2], np.uint8))
    shown = MAPS["albedo"](view)[0, 0, :, 0]
    assert shown.tolist() == [0, round((128 * 20 + 127 * 255) / 255), 255, 60]
    assert MAPS["material map"](view)[0, 0, 1].tolist() == [128, 51, 255]


def test_numbers_run_through_kinds_and_views_of_sets_of_all_sizes(rendered: tuple[RenderedSet, RenderedSet]) -> None:
    kinds = ("picture", "normal map", "picture")
    objects, room = rendered
    pictures = MapPictures([(objects, kinds), (room, kinds)], SIZE)
    assert len(pictures) == (8 + 4) * 3
    assert [pictures.place(i)[1:] for i in (0, 1, 5)] == [(0, "picture"), (0, "normal map"), (1, "picture")]
    np.testing.assert_array_equal(pictures.images(np.array([9]))[0], objects.images(np.array([3]))[0])
    whole = room.images(np.array([1]))[0]
    np.testing.assert_array_equal(pictures.images(np.array([27]))[0], whole[4:-4, 4:-4])
    drawn = [pictures.batch(np.array([27]), np.random.default_rng(seed))["images"][0] for seed in (0, 0, 1)]
    assert (drawn[0] == drawn[1]).all() and (drawn[0] != drawn[2]).any()
    assert any((drawn[0] == whole[y : y + SIZE, x : x + SIZE]).all() for y in range(9) for x in range(9))


def test_a_whole_round_trip_scores_as_nothing_lost(rendered: tuple[RenderedSet, RenderedSet]) -> None:
    pictures = MapPictures([(part, tuple(MAPS)) for part in rendered], SIZE)
    chosen = np.array([*range(len(MAPS)), *range(len(pictures) - len(MAPS), len(pictures))])
    scores = pictures.scores(chosen, pictures.images(chosen) / 255.0)
    assert {f"{place}{kind}/psnr" for kind in MAPS for place in ("", "place ")} <= scores.keys()
    assert all((scores[name] > 90).all() for name in scores if name.endswith("psnr"))
    assert all(values == pytest.approx(1.0) for name, values in scores.items() if name.endswith("edges"))
    assert np.max(scores["normal map/degrees"]) < 0.5 and np.median(scores["depth map/abs_rel"]) < 1e-3
    assert np.median(scores["place disparity map/abs_rel"]) < 5e-3


def test_scores_of_known_losses(objects: RenderedSet) -> None:
    pictures = MapPictures([(objects, ("picture", "normal map"))])
    two = pictures.images(np.array([0, 1])) / 255.0
    middle = two[0].mean((0, 1))
    scores = pictures.scores(np.array([0, 1]), np.stack([middle + 0.5 * (two[0] - middle), two[1][..., [1, 0, 2]]]))
    assert scores["picture/edges"] == pytest.approx([0.25])
    mse = np.square(0.5 * (two[0] - middle)).mean()
    assert scores["picture/psnr"] == pytest.approx([-10 * np.log10(mse)], abs=1e-3)
    normals = fixed_normals(pictures.columns(1))
    seen = np.linalg.norm(normals, axis=-1) > 0.5
    turned = np.rad2deg(np.arccos((normals[..., [1, 0, 2]] * normals).sum(-1)[seen].clip(-1, 1)))
    assert scores["normal map/degrees"] == pytest.approx(turned, abs=1.0)


def test_gradient_energy_of_a_step() -> None:
    picture = np.zeros((1, 3, 4, 3))
    picture[:, :, 2:] = 0.5
    assert gradient_energy(picture) == pytest.approx(3 * 3 * 0.25)


def test_what_cannot_be_shown_is_refused(objects: RenderedSet, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"kinds=\['sketch'\]"):
        MapPictures([(objects, ("sketch",))], SIZE)
    with pytest.raises(InputError, match="larger than the pictures of 24 px"):
        MapPictures([(objects, ("picture",))], SIZE + 1)
    plain = RenderedSet(render_set(RenderJob("object", "val", 1, 8), tmp_path / "plain", workers=1))
    with pytest.raises(InputError, match=r"holds no .*--maps"):
        MapPictures([(plain, ("albedo",))]).images(np.array([0]))
    assert MapPictures([(plain, ("picture",))], 8).images(np.array([0])).shape == (1, 8, 8, 3)


def test_captions_name_the_map_and_groups_stay_of_one_kind(rendered: tuple[RenderedSet, RenderedSet]) -> None:
    objects = rendered[0]
    kinds = ("picture", "normal map", "albedo")
    pictures = MapPictures([(objects, kinds), (objects, ("albedo",))])
    texts, count = pictures.captions(np.arange(len(pictures))), len(objects)
    plain = objects.captions(range(count))
    assert texts[: 3 * count] == [said for text in plain for said in (text, f"{text}, normal map", f"{text}, albedo")]
    assert texts[3 * count :] == [f"{text}, albedo" for text in plain]
    assert "view" in texts[1] and "view" not in pictures.captions(np.array([1]), None, views=False)[0]
    strange = MapPictures([(objects, ("albedo",))], strange=1.0).captions(np.array([0]), np.random.default_rng(0))
    assert strange != pictures.captions(np.array([2]), np.random.default_rng(0)) and strange[0].endswith(", albedo")
    groups = pictures.groups()
    assert groups.shape == (2 * 4, 4) and sorted(groups.ravel()) == list(range(len(pictures)))
    assert all(len({pictures.place(i).kind for i in group}) == 1 for group in groups)
    c2w, K = pictures.cameras(groups[4])  # the normal maps of the second group
    expected = objects.cameras(objects.groups()[1])
    np.testing.assert_array_equal(c2w, expected[0])
    np.testing.assert_array_equal(K, expected[1])
    np.testing.assert_array_equal(pictures.cameras(groups[7])[0], expected[0])


def test_every_map_has_its_words() -> None:
    assert tuple(MAPS) == ("picture", *MAP_WORDS)
