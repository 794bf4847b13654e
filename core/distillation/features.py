"""Outputs of named modules inside a network, seen while it answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ...utils.errors import InputError


class Taps(Mapping[str, Tensor]):
    """Inside the `with` block, the last output of each module; afterwards the hooks are gone.

    Of a module that returns several tensors the first is taken.
    """

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        """Raises InputError for names of no module."""
        known = dict(network.named_modules())
        odd = [name for name in names if name not in known]
        if odd:
            raise InputError(f"{type(network).__name__} has no module {odd[0]!r} to tap")
        self._modules = {name: known[name] for name in names}
        self._seen: dict[str, Tensor] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> Taps:
        for name, module in self._modules.items():
            self._hooks.append(module.register_forward_hook(self._keeper(name)))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._seen.clear()

    def _keeper(self, name: str) -> Any:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            self._seen[name] = output[0] if isinstance(output, (tuple, list)) else output

        return keep

    def __getitem__(self, name: str) -> Tensor:
        return self._seen[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._seen)

    def __len__(self) -> int:
        return len(self._seen)
