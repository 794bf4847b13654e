"""Noise from seeds: batches, devices, messages."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from unproject.utils.seeds import generator, sample_noise


def test_a_batch_equals_its_samples() -> None:
    both = sample_noise((2, 3), [generator(1), generator(2)], 2)
    for i, seed in enumerate((1, 2)):
        assert torch.equal(both[i : i + 1], sample_noise((2, 3), generator(seed), 1))
    with pytest.raises(ValueError, match="got 1 generators for a batch of 2; give one per sample or one for all"):
        sample_noise((2, 3), [generator(1)], 2)


@pytest.mark.parametrize("shared", [True, False])
def test_a_generator_draws_where_it_lives(monkeypatch: pytest.MonkeyPatch, shared: bool) -> None:
    class Elsewhere(torch.Generator):
        device = torch.device("meta")

    draw, places = torch.randn, []

    def watched(size: tuple[int, ...], **options: Any) -> torch.Tensor:
        places.append(options.get("device"))
        return draw(size, dtype=options["dtype"])

    monkeypatch.setattr(torch, "randn", watched)
    made = sample_noise((3,), Elsewhere() if shared else [Elsewhere(), Elsewhere()], 2)
    assert set(places) == {torch.device("meta")} and made.device.type == "cpu"
