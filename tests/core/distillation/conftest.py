"""What tests of students share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from unproject.utils.seeds import generator


@pytest.fixture(scope="session")
def asked() -> Callable[[Any], Tensor]:
    """What a tiny U-Net says of the same two states and texts, an early step and a late one."""

    def ask(network: Any) -> Tensor:
        x, text = torch.randn(2, 4, 8, 8, generator=generator(1)), torch.randn(2, 5, 32, generator=generator(2))
        with torch.no_grad():
            said: Tensor = network(x, torch.tensor([990, 350]), text).sample
        return said

    return ask
