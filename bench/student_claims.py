"""What the papers behind the students claim, as ratios and differences of what the table of students measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .intervals import digits
from .kept import Row
from .student_budget import ALL_4_4, QUEST_4_4
from .student_kernels import NETWORK
from .student_others import CUT
from .student_rivals import RIVALS

NONE = "none"
ADAM = 4  # numbers for each that learns: weight, gradient, two moments


def claims(
    table: Sequence[Row], heads: Sequence[Row], negative: Sequence[Row], kernels: Sequence[Row] = ()
) -> list[Row]:
    """A row for each claim of which all parts were measured: what was, what is wanted, whether it holds."""
    rows: list[Row] = []

    def found(student: str, calls: int, solver: str = "", guided: bool = True) -> Row | None:
        """The row of a student; of the teacher, with the solver that students share unless it is said."""
        wanted = solver or ("ddim" if student == NONE else "")
        for row in table:
            same = (row["student"], row["calls"]) == (student, calls) and wanted in ("", row["solver"])
            if same and (student != NONE or guided == (row["guidance"] != 1)):
                return row
        return None

    def claim(student: str, said: str, value: float, least: float = -np.inf, most: float = np.inf) -> None:
        wanted = [f">= {least:g}"] * (least > -np.inf) + [f"<= {most:g}"] * (most < np.inf)
        holds = bool(least <= value <= most)
        told = {"student": student, "claim": said, "measured": {"value": digits(value, 4)}}
        rows.append({**told, "wanted": " and ".join(wanted), "holds": holds})

    most = max(row["calls"] for row in table)
    long = found(NONE, most, "dpm++")
    steps = max((row["calls"] for row in table if row["student"] not in ("", NONE)), default=0)
    for calls, distance, points in ((4, 1.1, 2.0), (1, 1.35, 6.0)):
        names = {row["student"] for row in table} - {NONE, *RIVALS}  # those that come with the package
        able = [row for row in table if row["student"] in names and row["calls"] == calls and "toy_fid" in row]
        if able and long is not None and "toy_fid" in long:
            best = min(able, key=lambda row: row["toy_fid"]["fid"])
            name = best["student"]
            plural = f"{calls} call" + "s" * (calls > 1)
            claim(name, f"toy-FID of the best at {plural} over that of {long['calls']}",
                  _fid(best) / _fid(long), most=distance)  # fmt: skip
            lost = 100 * (long["accuracy"]["value"] - best["accuracy"]["value"])
            claim(name, f"points of accuracy lost at {plural}", lost, most=points)
    gain = [found("lora-distillation", steps), found(NONE, steps, guided=False), found(NONE, steps)]
    if all(row is not None for row in gain):
        mine, plain, whole = (row["accuracy"]["value"] for row in gain if row is not None)
        if whole > plain:
            claim("lora-distillation", "share of the gain of guidance, at half the rows",
                  (mine - plain) / (whole - plain), least=0.8)  # fmt: skip
        learns = (gain[0] or {})["trained_share"]
        memory = (1 + ADAM * learns) / (1 + ADAM)
        claim("lora-distillation", "weights, gradients and moments over those of a whole student and its teacher",
              memory, most=0.6)  # fmt: skip
    for row in negative:
        claim(row["student"], "cosine of what another negative prompt changes", row["cosine"]["mean"], least=0.8)
    arc, euler = found("arcflow", 2), found(NONE, 2)
    if arc is not None and euler is not None:
        claim("arcflow", "paired error at 2 calls over that of DDIM", _mse(arc) / _mse(euler), most=0.3)
        claim("arcflow", "share of the weights that learns", arc["trained_share"], most=0.05)
    for name, faster in (("koala", 0.6), ("asdm", 0.82)):
        small, whole_row = found(name, steps), found(NONE, steps)
        if small is not None and whole_row is not None:
            claim(name, "time of a picture over the prior's", small["ms_per_picture"] / whole_row["ms_per_picture"],
                  most=faster)  # fmt: skip
            if "toy_fid" in small:
                claim(name, "toy-FID over the prior's", _fid(small) / _fid(whole_row), most=1.15)
    bits, whole_row = found("quest", steps), found(NONE, steps)
    if bits is not None and whole_row is not None:
        claim("quest", "file over float32", bits["megabytes"] / whole_row["megabytes"], most=0.16)
    selected, all_weights = found(QUEST_4_4, steps), found(ALL_4_4, steps)
    if selected is not None and all_weights is not None and "toy_fid" in selected:
        claim("quest", "toy-FID with weights and inputs of 4 bits over that of a fine-tuning of all weights",
              _fid(selected) / _fid(all_weights), most=1.2)  # fmt: skip
    groups: dict[tuple[str, int, bool], list[float]] = {}
    for row in kernels:
        groups.setdefault((row["of"], row["batch"], row["layer"] == NETWORK), []).append(row["int8_ratio"])
    for (of, batch, whole), ratios in groups.items():
        part = NETWORK if whole else "the slowest layer"
        claim("quest", f"time of integers over float32, {part}, {of}, batch {batch}", max(ratios), most=1.0)
    for row in (row for row in heads[1:] if row["network"] != CUT):  # a cut that was not taught is no claim
        claim("head of geometry", f"AbsRel over the whole head's, {row['network']}", row["abs_rel_ratio"]["ratio"],
              most=1.05)  # fmt: skip
    return rows


def _fid(row: Row) -> float:
    return float(row["toy_fid"]["fid"])


def _mse(row: Row) -> float:
    return float(row["mse_to_teacher"]["mean"])
