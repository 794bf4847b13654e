"""Digests: the format that files on disk were written with, and what it does and does not notice."""

from __future__ import annotations

import hashlib

import torch

from unproject.core.training.latents import weights_hash
from unproject.utils.digests import digest


def test_it_is_the_sha256_of_names_and_values_in_name_order():
    layer = torch.nn.Linear(2, 3)
    wanted = hashlib.sha256()
    for name in ("bias", "weight"):
        wanted.update(name.encode() + getattr(layer, name).detach().numpy().tobytes())
    assert digest(layer.state_dict()) == weights_hash(layer) == wanted.hexdigest()[:16]


def test_values_count_as_their_dtype_holds_them():
    fine = {"a": torch.tensor([1.0, 2.0**-20]), "b": torch.tensor(3)}
    near = {"b": torch.tensor(3), "a": torch.tensor([1.0 + 2.0**-20, 2.0**-20])}
    assert digest(fine) != digest(near)
    assert digest(fine, torch.float16) == digest(near, torch.float16)
    assert digest(fine, torch.float16) != digest({**fine, "b": torch.tensor(4)}, torch.float16)
