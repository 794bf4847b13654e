"""Outputs of named modules inside a network, seen while it answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ...utils.errors import InputError


class Taps(Mapping[str, Tensor]):
    """Inside the `with` block, the last output of each module; afterwards the hooks are gone."""

    def __init__(self, network: nn.Module, names: Sequence[str], which: int = 0) -> None:
        """`which` of the tensors that a module returns is taken. Raises InputError for names of no module."""
        known = dict(network.named_modules())
        odd = [name for name in names if name not in known]
        if odd:
            raise InputError(f"{type(network).__name__} has no module {odd[0]!r} to tap")
        self._which = which
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
            several = output if isinstance(output, (tuple, list)) else (output,)
            self._seen[name] = [part for part in several if isinstance(part, Tensor)][self._which]

        return keep

    def __getitem__(self, name: str) -> Tensor:
        return self._seen[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._seen)

    def __len__(self) -> int:
        return len(self._seen)
