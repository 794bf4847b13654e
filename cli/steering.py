"""Options of the commands whose pictures are steered by pictures: edges, depths and normals, and image prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..utils.errors import InputError
from .common import check_picture
from .priors import EMBEDDED, PriorCommand

KINDS = ("canny", "depth", "normal", "map")


@dataclass(frozen=True, kw_only=True)
class ImagePromptCommand(PriorCommand):
    """Options of commands that read a picture beside the words."""

    ip_image: Path | None = None
    """Picture that is read beside the words; needs --ip-adapter."""
    ip_adapter: str | None = None
    """IP-Adapter that reads it, FILE or FILE:SCALE; its image_encoder/ lies beside the file."""

    def check(self) -> None:
        """Both or neither."""
        if (self.ip_image is None) != (self.ip_adapter is None):
            given = f"--ip-image {self.ip_image}" if self.ip_adapter is None else f"--ip-adapter {self.ip_adapter}"
            raise InputError(f"{given}: --ip-image and --ip-adapter go together; give both, or neither")
        if self.ip_image is not None:
            check_picture("--ip-image", self.ip_image)
        super().check()

    def placement(self) -> dict[str, Any]:
        """See PriorCommand.placement; and what reads the picture."""
        return {**super().placement(), **({"ip_adapter": self.ip_adapter} if self.ip_adapter else {})}

    def prompt_pictures(self) -> dict[str, Any]:
        """The argument of the pipeline."""
        return {} if self.ip_image is None else {"ip_adapter_image": self.ip_image}


@dataclass(frozen=True, kw_only=True)
class SteeredCommand(ImagePromptCommand):
    """Options of commands that follow the lines of a picture."""

    control_image: tuple[str, ...] = ()
    """KIND:FILE, what the picture follows: canny (the edges of a picture), depth or normal (NAME.npz of `unproject
    depth` or `normals`, or a picture of such a map), or map (a picture as the control wants it)."""
    control_net: tuple[str, ...] = ()
    """ControlNet or T2I-Adapter for each --control-image, a folder or hub id, with :SCALE (default: by KIND for sd15,
    sdxl, sd3 and flux-dev)."""

    def check(self) -> None:
        """The files have to be there, and a control for each."""
        for text in self.control_image:
            kind, file = split_kind(text)
            check_picture(f"--control-image {kind}:", file)
        if self.control_net and len(self.control_net) != len(self.control_image):
            raise InputError(
                f"{len(self.control_net)} --control-net and {len(self.control_image)} --control-image: give one of "
                "each for every control"
            )
        self.nets()
        super().check()

    def nets(self) -> list[str]:
        """The controls, one for each picture. Raises InputError where none is known for a kind."""
        if self.control_net or not self.control_image:
            return list(self.control_net)
        from ..utils.configs import config_path, read_yaml

        entries = read_yaml(config_path("priors"))["priors"]
        known = entries.get(self._id(entries), {}).get("controls", {})
        kinds = [split_kind(text)[0] for text in self.control_image]
        lacking = [kind for kind in kinds if kind not in known]
        if lacking:
            raise InputError(
                f"--control-image {lacking[0]}:...: no control of this kind is known for --prior {self.prior}; give "
                "--control-net with a folder or hub id of one that was made for it"
            )
        return [known[kind] for kind in kinds]

    def _id(self, entries: Mapping[str, Any]) -> str:
        """The registry's id of the prior: also of a full hub id, and of a folder that holds such a repository."""
        if self.prior in (*entries, *EMBEDDED):
            return self.prior
        from ..core.priors.registry import entry_of  # heavy

        found = entry_of(self.prior)
        return found[0] if found else self.prior

    def placement(self) -> dict[str, Any]:
        """See PriorCommand.placement; and the controls."""
        nets = self.nets()
        return {**super().placement(), **({"controlnet": nets} if nets else {})}

    def prompt_pictures(self) -> dict[str, Any]:
        """The arguments of the pipeline."""
        from ..pipelines.picture_conditions import control_map

        maps = [control_map(*split_kind(text)) for text in self.control_image]
        given = {"control_image": maps[0] if len(maps) == 1 else maps} if maps else {}
        return {**super().prompt_pictures(), **given}


def split_kind(text: str) -> tuple[str, Path]:
    """(kind, file) of a --control-image. Raises InputError for another form."""
    kind, _, file = text.partition(":")
    if kind not in KINDS or not file:
        raise InputError(f"--control-image {text!r}: write KIND:FILE with {', '.join(KINDS)}")
    return kind, Path(file)
