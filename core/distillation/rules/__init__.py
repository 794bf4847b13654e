"""The rules of score distillation: one file for each paper, one field of `RuleConfig` for each rule."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from ....utils.errors import InputError
from .asd import ASD
from .base import NEGATIVE, Pull, Rule, Seen
from .csd import CSD
from .inverted import ISM, SDI
from .nfsd import NFSD
from .sds import SDS, SJC
from .vsd import VSD

__all__ = ["NEGATIVE", "Pull", "Rule", "RuleConfig", "Seen"]


@dataclass(frozen=True)
class RuleConfig:
    """`kind` names the rule; the settings of the others must stay as they are."""

    kind: str = "sds"
    sds: SDS = field(default_factory=SDS)
    sjc: SJC = field(default_factory=SJC)
    vsd: VSD = field(default_factory=VSD)
    csd: CSD = field(default_factory=CSD)
    nfsd: NFSD = field(default_factory=NFSD)
    ism: ISM = field(default_factory=ISM)
    sdi: SDI = field(default_factory=SDI)
    asd: ASD = field(default_factory=ASD)

    def __post_init__(self) -> None:
        rules = [f.name for f in fields(self) if f.name != "kind"]
        if self.kind not in rules:
            raise InputError(f"score.rule.kind={self.kind!r} is unknown; have {', '.join(rules)}")
        for name in rules:
            value = getattr(self, name)
            if name != self.kind and value != type(value)():
                raise InputError(f"score.rule.{name} has no meaning for the rule {self.kind!r}; leave it out")

    @property
    def made(self) -> Rule:
        """The rule with its settings."""
        rule: Rule = getattr(self, self.kind)
        return rule
