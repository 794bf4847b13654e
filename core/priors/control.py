"""Networks beside a U-Net that steer it by a picture: ControlNet (Zhang et al. 2023), T2I-Adapter (Mou et al. 2023).

The picture rides on the rows of the condition, (B, 3, H, W) in [0, 1] under the name of its control, so that repeating,
batching, branches and guidance treat it like the text. A ControlNet answers anew at every state: skip connection i gets
s c_i(x, t, text, picture). An adapter looks at the picture alone, so its features are kept while it stays the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .rows import Rows

CONTROL = "control"  # row of the first control; those of further ones are control_2, control_3 ...
IMAGE_PROMPT = "image_prompt"  # row of a picture that is read like words (image_prompt.py)


@dataclass(eq=False)
class PictureControl:
    """A control of a U-Net: how much of it, and the row that its picture comes in."""

    network: nn.Module
    scale: float = 1.0
    row: str = CONTROL
    _kept: tuple[Tensor, list[Tensor]] | None = field(default=None, repr=False)

    def added(self, x: Tensor, time: Tensor, text: Tensor, rows: Rows, more: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments that make a U-Net add this control's features at x (B, C, h, w).

        `more` are the network's further conditions (SDXL's pooled text and sizes).
        """
        picture = rows[self.row].to(x)
        if type(self.network).__name__ == "T2IAdapter":
            return {"down_intrablock_additional_residuals": self._features(rows[self.row], picture)}
        down, middle = self.network(
            x,
            time,
            encoder_hidden_states=text,
            controlnet_cond=picture,
            conditioning_scale=self.scale,
            added_cond_kwargs=more or None,
            return_dict=False,
        )
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}

    def _features(self, given: Tensor, picture: Tensor) -> list[Tensor]:
        if self._kept is None or self._kept[0] is not given:
            self._kept = given, [self.scale * feature for feature in self.network(picture)]
        return list(self._kept[1])  # the network takes its list apart


def summed(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The arguments of several controls as one: features of one place are added."""
    whole: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if name not in whole:
                whole[name] = value
            elif isinstance(value, Tensor):
                whole[name] = whole[name] + value
            else:
                whole[name] = [a + b for a, b in zip(whole[name], value, strict=True)]
    return whole
