"""Networks that steer another one by a picture: ControlNet (Zhang et al. 2023), T2I-Adapter (Mou et al. 2023).

The picture rides on the rows of the condition, (B, 3, H, W) in [0, 1] under the name of its control, so that repeating,
batching, branches and guidance treat it like the text. A ControlNet answers anew at every state: skip connection i gets
s c_i(x, t, text, picture). An adapter looks at the picture alone, so its features are kept while it stays the same.
The ControlNets of SD3 and FLUX add to the blocks of a transformer and are shown the picture's latents (the posterior's
mean; some of FLUX the picture itself), which are kept likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .latents import packed
from .rows import Rows

CONTROL = "control"  # row of the first control; those of further ones are control_2, control_3 ...
IMAGE_PROMPT = "image_prompt"  # row of a picture that is read like words (image_prompt.py)


@dataclass(eq=False)
class PictureControl:
    """A control of a network: how much of it, and the row that its picture comes in."""

    network: nn.Module
    scale: float = 1.0
    row: str = CONTROL
    mode: int | None = None  # what kind of picture it is, for a FLUX control of several kinds (union)
    _kept: tuple[Tensor, Any] | None = field(default=None, repr=False)

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
        features = self._of_picture(given, lambda: [self.scale * feature for feature in self.network(picture)])
        return list(features)  # the network takes its list apart

    def _of_picture(self, given: Tensor, make: Callable[[], Any]) -> Any:
        """What is made of a row of pictures, kept while it is the same."""
        if self._kept is None or self._kept[0] is not given:
            self._kept = given, make()
        return self._kept[1]

    def joint(self, asked: Mapping[str, Any], rows: Rows, latents: Callable[[Tensor, bool], Tensor]) -> dict[str, Any]:
        """The arguments that make a transformer of SD3 or FLUX, asked `asked`, add this control's features.

        `latents` gives (B, C, h, w) of pictures (B, 3, H, W) in [0, 1], with or without the shift of the VAE's config.
        """
        config: Any = self.network.config
        own, pictures = dict(asked), rows[self.row]
        if type(self.network).__name__ == "FluxControlNetModel":
            direct = config.conditioning_embedding_channels is not None
            shown = self._of_picture(pictures, lambda: 2 * pictures - 1 if direct else packed(latents(pictures, True)))
            own |= {} if config.guidance_embeds else {"guidance": None}
            if self.mode is not None:
                own["controlnet_mode"] = torch.full((len(rows), 1), self.mode, device=pictures.device)
            blocks, single = self._asked(own, shown)
            parts = {"controlnet_block_samples": blocks, "controlnet_single_block_samples": single}
            return {name: part for name, part in parts.items() if part} | {"controlnet_blocks_repeat": direct}
        blind = bool(config.force_zeros_for_pooled_projection)  # such were made without the VAE's shift, too
        shown = self._of_picture(pictures, lambda: latents(pictures, not blind))
        if blind:
            own["pooled_projections"] = torch.zeros_like(own["pooled_projections"])
        if config.joint_attention_dim is None:
            own["encoder_hidden_states"] = None
        return {"block_controlnet_hidden_states": self._asked(own, shown)[0]}

    def _asked(self, own: Mapping[str, Any], shown: Tensor) -> Any:
        state = own["hidden_states"]
        return self.network(**own, controlnet_cond=shown.to(state), conditioning_scale=self.scale, return_dict=False)


def summed(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The arguments of several controls as one: features of one place are added."""
    whole: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if name not in whole or isinstance(value, bool):
                whole[name] = value
            elif isinstance(value, Tensor):
                whole[name] = whole[name] + value
            else:
                whole[name] = [a + b for a, b in zip(whole[name], value, strict=True)]
    return whole
