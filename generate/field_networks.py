"""Networks from text to the parameters of a field: what one forward pass makes in the place of an optimisation.

    hyper   a hash grid that all prompts share, and a decoder of its own for each (Hyper-iNGP);
    planes  learnt queries, one for each patch of each feature plane, read text in a transformer (triplane transformer);
    voxels  a learnt block grows by convolutions in 3-D, whose channels text and style scale (3DConv-net).
All three are generators of Ma et al. 2024 ("ScaleDreamer"). Text is what a frozen prior reads, (B, L, D); the style is
drawn for each object. Outputs are small at first, so that every prompt begins with the start shape of the field's head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..geometry.fields import DualField, Field, GridField, HashField, TriplaneField
from ..utils.errors import InputError

Values = dict[str, Tensor]  # (B, ...) by the field's names of its parameters
FAINT = 0.02  # of the usual size of weights, for what makes outputs


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes; `kind` chooses the network, and belongs to a kind of field."""

    kind: Literal["hyper", "planes", "voxels"] = "planes"
    width: int = 192  # of tokens; of voxels: channels of the coarsest level
    layers: int = 4
    heads: int = 4  # of attention
    tokens: int = 8  # of a plane along an edge (kind "planes")
    style: int = 8  # numbers drawn for each object beside its text; 0: every seed makes the same

    def __post_init__(self) -> None:
        if min(self.width, self.layers, self.heads, self.tokens) < 1 or self.style < 0 or self.width % self.heads:
            raise InputError(
                f"network: width={self.width}, layers={self.layers}, heads={self.heads}, tokens={self.tokens} must be "
                f"at least 1, width a multiple of heads and style={self.style} not negative"
            )


class FieldNetwork(nn.Module, ABC):
    """Base of the three."""

    fields: ClassVar[tuple[type[Field], ...]]  # that it can fill

    @abstractmethod
    def forward(self, text: Tensor, style: Tensor) -> Values:
        """Parameters of B fields from text (B, L, D) and style (B, S)."""

    @staticmethod
    @abstractmethod
    def shared(field: Field) -> nn.Module | None:
        """What of the field learns itself, the same for all prompts."""


class Words(nn.Module):
    """Text and style as tokens (B, L + 1, W)."""

    def __init__(self, text_width: int, config: NetworkConfig) -> None:
        super().__init__()
        self.norm, self.text = nn.LayerNorm(text_width), nn.Linear(text_width, config.width)
        self.style = nn.Linear(config.style, config.width) if config.style else None

    def forward(self, text: Tensor, style: Tensor) -> Tensor:
        """Without style (B, L, W)."""
        tokens = self.text(self.norm(text.float()))
        return tokens if self.style is None else torch.cat([tokens, self.style(style)[:, None]], dim=1)


class Sentence(nn.Module):
    """Text and style as one vector (B, W): a learnt query reads the words."""

    def __init__(self, text_width: int, config: NetworkConfig) -> None:
        super().__init__()
        self.words = Words(text_width, config)
        self.query = nn.Parameter(torch.randn(1, 1, config.width))
        self.attention = nn.MultiheadAttention(config.width, config.heads, batch_first=True)
        parts: list[nn.Module] = []
        for _ in range(config.layers):
            parts += [nn.Linear(config.width, config.width), nn.SiLU()]
        self.rest = nn.Sequential(nn.LayerNorm(config.width), *parts)

    def forward(self, text: Tensor, style: Tensor) -> Tensor:
        """The style is added, that attention cannot lose it among the words."""
        words = self.words(text, style)
        read = self.attention(self.query.expand(len(words), -1, -1), words, words, need_weights=False)[0][:, 0]
        return self.rest(read if self.words.style is None else read + words[:, -1])


class HyperNetwork(FieldNetwork):
    """A decoder for each prompt behind one hash grid: W(text) = W_0 + H(text), each parameter with an H of its own."""

    fields = (HashField,)

    def __init__(self, text_width: int, config: NetworkConfig, field: HashField) -> None:
        super().__init__()
        self.sentence = Sentence(text_width, config)
        own = dict(field.decoder.named_parameters())
        self.shapes = {f"decoder.{name}": p.shape for name, p in own.items()}
        self.first = nn.ParameterList([p.detach().clone() for p in own.values()])
        self.heads = nn.ModuleList([nn.Linear(config.width, p.numel()) for p in own.values()])
        for head, p in zip(self.heads, own.values(), strict=True):
            _faint(head, float(p.detach().std()) if p.dim() > 1 else FAINT)

    def forward(self, text: Tensor, style: Tensor) -> Values:
        """See FieldNetwork."""
        sentence = self.sentence(text, style)
        parts = zip(self.shapes.items(), self.first, self.heads, strict=True)
        return {name: first + head(sentence).view(-1, *shape) for (name, shape), first, head in parts}

    @staticmethod
    def shared(field: Field) -> nn.Module:
        """The tables."""
        assert isinstance(field, HashField)
        return field.tables


class PlaneTransformer(FieldNetwork):
    """Queries (P T^2) that see each other and the words; each becomes a patch of its plane."""

    fields = (TriplaneField, DualField)

    def __init__(self, text_width: int, config: NetworkConfig, field: TriplaneField | DualField) -> None:
        super().__init__()
        self.count, channels, side = field.planes.shape[:3]
        if side % config.tokens:
            raise InputError(f"network: tokens={config.tokens} must divide the {side} texels of a plane's edge")
        self.tokens = config.tokens
        self.words = Words(text_width, config)
        self.queries = nn.Parameter(0.5 * torch.randn(self.count * config.tokens**2, config.width))
        layer = nn.TransformerDecoderLayer(
            config.width, config.heads, 4 * config.width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerDecoder(layer, config.layers, nn.LayerNorm(config.width))
        patch = side // config.tokens
        self.last = nn.ConvTranspose2d(config.width, channels, patch, stride=patch)

    def forward(self, text: Tensor, style: Tensor) -> Values:
        """See FieldNetwork."""
        words = self.words(text, style)
        read = self.layers(self.queries.expand(len(words), -1, -1), words)  # (B, P T^2, W)
        grids = read.unflatten(1, (self.count, self.tokens, self.tokens)).flatten(0, 1).movedim(-1, 1)
        return {"planes": self.last(grids).unflatten(0, (-1, self.count))}  # (B, P, C, S, S)

    @staticmethod
    def shared(field: Field) -> nn.Module:
        """What reads the planes."""
        assert isinstance(field, (TriplaneField, DualField))
        return field.heads if isinstance(field, DualField) else field.decoder


class VoxelNetwork(FieldNetwork):
    """Every level of a pyramid of grids from the features of the one before, twice as fine, with half the channels."""

    fields = (GridField,)

    def __init__(self, text_width: int, config: NetworkConfig, field: GridField) -> None:
        super().__init__()
        self.sides = field.config.sides
        self.sentence = Sentence(text_width, config)
        widths = [max(8, config.width >> level) for level in range(len(self.sides))]
        self.block = nn.Parameter(torch.randn(1, widths[0], *[self.sides[0]] * 3))
        before = [widths[0], *widths[:-1]]
        self.convs = nn.ModuleList([nn.Conv3d(a, b, 3, padding=1) for a, b in zip(before, widths, strict=True)])
        self.scales = nn.ModuleList([nn.Linear(config.width, width) for width in before])
        self.heads = nn.ModuleList([nn.Conv3d(width, 4, 1) for width in widths])
        for head in self.heads:
            _faint(head, FAINT)

    def forward(self, text: Tensor, style: Tensor) -> Values:
        """See FieldNetwork."""
        sentence, found = self.sentence(text, style), Values()
        x = self.block.expand(len(sentence), -1, -1, -1, -1)
        for level, side in enumerate(self.sides):
            if x.shape[-1] != side:
                x = nn.functional.interpolate(x, (side,) * 3, mode="trilinear", align_corners=True)
            scale = 1 + self.scales[level](sentence)
            x = nn.functional.leaky_relu(self.convs[level](x * scale[..., None, None, None]), 0.2)
            geometry, color = self.heads[level](x).split((1, 3), dim=1)
            found |= {f"geometry.{level}": geometry[:, None], f"colors.{level}": color[:, None]}
        return found

    @staticmethod
    def shared(field: Field) -> None:
        """Nothing: the grids are all there is."""


NETWORKS: dict[str, type[FieldNetwork]] = {
    "hyper": HyperNetwork,
    "planes": PlaneTransformer,
    "voxels": VoxelNetwork,
}


def make_network(config: NetworkConfig, text_width: int, field: Field) -> FieldNetwork:
    """The network of a config for fields like this one. Raises InputError for kinds that do not fill it."""
    kind = NETWORKS[config.kind]
    if not isinstance(field, kind.fields):
        known = " or ".join(one.kind for one in kind.fields)
        raise InputError(f"network.kind={config.kind!r} fills fields of kind {known}, not {field.kind}")
    made: FieldNetwork = kind(text_width, config, field)  # type: ignore[call-arg]
    return made


def _faint(layer: nn.Module, size: float) -> None:
    """Outputs of about `size` for inputs of size 1."""
    assert isinstance(layer, (nn.Linear, nn.Conv3d)) and layer.bias is not None
    nn.init.normal_(layer.weight, std=size * layer.weight[0].numel() ** -0.5)
    nn.init.zeros_(layer.bias)
