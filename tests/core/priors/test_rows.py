"""Rows and conditions: whatever is done to them is done to every tensor of every branch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from unproject.core.priors import Condition, Rows, load_prior
from unproject.utils.errors import InputError


def bag(seed: int = 0, rows: int = 3, frames: int = 1) -> Rows:
    """Tensors of several ranks and dtypes that tell their row."""
    rng = torch.Generator().manual_seed(seed)
    return Rows(
        {
            "text": torch.randn(rows, 4, 5, generator=rng),
            "pooled": torch.randn(rows, 6, generator=rng),
            "guidance": torch.arange(rows) + 10.0 * seed,
            "ids": torch.arange(rows * 2).reshape(rows, 2) + 100 * seed,
        },
        frames,
    )


def condition(rows: int = 3, frames: int = 1) -> Condition:
    """Three branches."""
    prompts = [f"prompt {row}" for row in range(rows)]
    return Condition({name: bag(seed, rows, frames) for seed, name in enumerate(("cond", "null", "image"))}, prompts)


def check(found: Condition, source: Condition, rows: list[int]) -> None:
    """Every tensor of every branch, and the prompts, are these rows of the source."""
    assert found.branches.keys() == source.branches.keys()
    for name, own in source.branches.items():
        assert found[name].tensors.keys() == own.tensors.keys()
        for key, value in own.tensors.items():
            assert torch.equal(found[name][key], torch.stack([value[row] for row in rows])), (name, key)
    assert list(found.prompts) == [source.prompts[row] for row in rows]


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        ([2, 0, 0], [2, 0, 0]),
        ([-1, -3], [2, 0]),
        (slice(1, None), [1, 2]),
        (slice(None, None, 2), [0, 2]),
        (torch.tensor([1, -2]), [1, 1]),
        (torch.tensor([False, True, True]), [1, 2]),
        ([True, False, True], [0, 2]),
    ],
)
def test_index_takes_the_same_rows_of_everything(index, rows):
    check(condition().index(index), condition(), rows)


@pytest.mark.parametrize("rows", [torch.tensor([0, 1, 1], dtype=torch.uint8), np.array([0, 1, 0], np.uint8)])
def test_bytes_are_neither_a_mask_nor_numbers(rows):
    with pytest.raises(InputError, match=r"uint8 may be a mask or numbers; give mask\.bool\(\)"):
        condition().index(rows)


def test_repeat_keeps_copies_adjacent_and_groups_whole():
    check(condition().repeat(2), condition(), [0, 0, 1, 1, 2, 2])
    grouped = condition(4, frames=2)
    check(grouped.repeat(2), grouped, [0, 1, 0, 1, 2, 3, 2, 3])
    assert grouped.repeat(2).frames == 2
    check(grouped.index([2, 3]), grouped, [2, 3])
    assert grouped.index(slice(2, 4)).frames == 2
    assert grouped.index(torch.tensor([True, True, False, False])).rows == 2
    for part in ([0], [1, 2], [1, 0], slice(0, 3)):
        with pytest.raises(InputError, match="no whole groups of 2 views"):
            grouped.index(part)


def test_only_floating_tensors_get_a_dtype():
    half = condition().to("cpu", torch.float16)
    for rows in half.branches.values():
        assert {key: value.dtype for key, value in rows.tensors.items()} == {
            "text": torch.float16,
            "pooled": torch.float16,
            "guidance": torch.float16,
            "ids": torch.int64,
        }
    assert condition().to("meta")["image"]["ids"].device.type == "meta"


def test_rows_reach_every_branch():
    maps = torch.arange(6.0).reshape(3, 2)
    more = condition().with_rows(control=maps, scale=torch.tensor([[2.0]]))
    for rows in more.branches.values():
        assert torch.equal(rows["control"], maps)
        assert rows["scale"].tolist() == [[2.0]] * 3
    again = more.repeat(2).index([1, 5])
    assert torch.equal(again["image"]["control"], maps[[0, 2]])
    added = condition().branch("swapped", bag(7))
    assert torch.equal(added.index([1])["swapped"]["text"], bag(7)["text"][1:2])


def test_one_row_serves_a_batch_and_others_must_fit():
    check(condition().index([1]).for_batch(3), condition(), [1, 1, 1])
    one = condition(2, frames=2)
    check(one.for_batch(4), one, [0, 1, 0, 1])
    for source, count in ((condition(), 4), (one, 3)):
        with pytest.raises(InputError, match=f"{count} latents does not fit"):
            source.for_batch(count)


def test_views_are_seen_from_their_own_cameras():
    cameras = torch.arange(64.0).reshape(4, 16)
    views = condition(2).with_views(cameras, 4)
    assert list(views.prompts) == ["prompt 0"] * 4 + ["prompt 1"] * 4
    assert views.frames == 4
    for rows in views.branches.values():
        assert torch.equal(rows["cameras"], cameras.repeat(2, 1))
    own = torch.arange(128.0).reshape(8, 16)
    assert torch.equal(condition(2).with_views(own, 4)["null"]["cameras"], own)
    assert torch.equal(condition(2).with_views(own, 4).index(slice(4, 8))["cond"]["cameras"], own[4:])
    with pytest.raises(InputError, match=r"cameras have shape \(3, 16\)"):
        condition(2).with_views(cameras[:3], 4)
    with pytest.raises(InputError, match="groups of 4 views already"):
        views.with_views(cameras, 4)


def test_joined_rows_carry_the_same_tensors():
    whole = Rows.join([bag(1), bag(0)])
    assert torch.equal(whole["text"], torch.cat([bag(1)["text"], bag(0)["text"]]))
    with pytest.raises(InputError, match=r"carry the same tensors.*add what is missing to every branch"):
        Rows.join([bag(0), Rows({"text": bag(1)["text"]})])
    with pytest.raises(InputError, match="carry the same tensors"):
        Rows.join([bag(0, 4, 2), bag(1, 4, 1)])


def test_what_does_not_fit_is_named():
    with pytest.raises(InputError, match="same number of rows"):
        Rows({"text": torch.zeros(2, 3), "pooled": torch.zeros(3, 3)})
    with pytest.raises(InputError, match="whole groups of frames=2"):
        bag(0, 3, 2)
    with pytest.raises(InputError, match="needs 'control', which its condition lacks; it has text"):
        bag()["control"]
    with pytest.raises(InputError, match="lacks the branch 'style'; it has cond"):
        condition()["style"]
    with pytest.raises(InputError, match=r"equal \(rows, frames\) in every branch"):
        condition().branch("image", bag(0, 2))
    with pytest.raises(InputError, match="needs 'cond'"):
        Condition({"null": bag()})
    for index in ([3], [-4], [0.5], torch.tensor([True, False])):
        with pytest.raises(InputError):
            condition().index(index)


def test_a_condition_loads_no_diffusion_library():
    code = (
        "import sys; from unproject.core.priors import Condition, Prior, Rows; "
        "heavy = {'diffusers', 'transformers', 'kornia', 'open3d'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rows({"guidance": torch.tensor(3.0)}), "same number of rows"),
        (lambda: bag().with_tensors(guidance=torch.tensor(3.0)), "same number of rows"),
        (lambda: bag().repeat(-1), "repeated -1 times"),
        (lambda: bag().repeat(1.5), "repeated 1.5 times"),
        (lambda: Condition({"cond": bag()}, ["one", "two"]), "one text for each of the 3 rows"),
        (lambda: Condition({"cond": bag()}, "abc"), "one text for each of the 3 rows"),
    ],
)
def test_what_is_no_row_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_limits_of_choosing_rows():
    check(condition().index(slice(None, None, -1)), condition(), [2, 1, 0])
    assert condition(4, 2).index([]).rows == 0 == condition(4, 2).index([]).repeat(2).rows
    nameless = Condition({"cond": bag(rows=4, frames=2)})
    assert nameless.repeat(3).rows == 12 and not nameless.repeat(3).prompts


def test_rows_that_a_network_does_not_read_are_refused(tiny_folders) -> None:
    prior = load_prior(tiny_folders["sd3"])
    rows, x = prior.encode_text("a cup")["cond"], torch.zeros(1, *prior.latent_shape)
    assert prior.predict(x, 500.0, rows).shape == x.shape
    with pytest.raises(InputError, match="takes no rows called concat, control; it reads pooled, text"):
        prior.predict(x, 500.0, rows.with_tensors(concat=x, control=x))
    assert prior.nfe == 1
