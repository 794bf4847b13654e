"""Text to splats and the choice of a rule: what is written, what is refused, what a resumed run with a twin gives."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from unproject.core.distillation.score import ScoreConfig
from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE, GaussianMixturePrior
from unproject.generate.optimise import Optimisation
from unproject.generate.views import views_around
from unproject.geometry.splats import load_splats
from unproject.pipelines import text_to_splats
from unproject.pipelines.text_to_mesh import MeshRecipe, TextToMesh
from unproject.pipelines.text_to_shape import load_recipe
from unproject.pipelines.text_to_splats import TextToSplats
from unproject.utils.configs import CONFIGS, load_config
from unproject.utils.errors import InputError

SIZE = 16
NAMES = ("dark,", "light")  # the first as it stands before words for views
SMALL = {
    "score": {"guidance": 1.0, "rescale": 0.0},
    "optimise": {
        "steps": 6,
        "sizes": [[0, SIZE]],
        "guided_px": SIZE,
        "checkpoint_every": 2,
        "shape": {"kind": "gaussians", "gaussians": {"count": 60, "color_lr": 0.2, "opacity": 0.5}},
    },
    "preview_every": 0,
}
RULES = sorted(path.stem for path in (CONFIGS / "rules").glob("*.yaml"))


def prior(config=SD_SCHEDULE) -> GaussianMixturePrior:
    means = torch.stack([torch.full((3, SIZE, SIZE), -0.6), torch.full((3, SIZE, SIZE), 0.6)])
    made = GaussianMixturePrior(means, torch.tensor([0.3, 0.3]), names=NAMES, scheduler_config=config)
    made.dtype = torch.float32
    return made


def test_everything_is_written_and_reads_back(tmp_path):
    made = TextToSplats(prior(), load_config(MeshRecipe, SMALL))("dark", seed=2, diagnostics=tmp_path / "told")
    names = {path.name for path in made.save(tmp_path, "dark.compressed.ply", frames=2, size=32)}
    films = {"turntable.gif", "turntable.mp4"}
    assert names == {"dark.compressed.ply", "dark.compressed.report.json", "sheet.png", "run.json"} | films
    assert len(load_splats(tmp_path / "dark.compressed.ply")) == made.report["splats"] == len(made.splats) > 0
    assert json.loads((tmp_path / "dark.compressed.report.json").read_text()) == {
        "file": "dark.compressed.ply",
        **made.report,
    }
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["nfe"] == {"denoiser": made.nfe} and record["notes"]["prompt"] == "dark" and made.nfe == 6 * 4
    assert (tmp_path / "told" / "diagnostics.json").is_file()
    assert made.splats.colors.mean() < 0.5, "the prior wanted it dark"


def test_its_mesh_is_told_from_where_colours_were_learnt(monkeypatch):
    made = TextToSplats(prior(), load_config(MeshRecipe, SMALL))("dark", seed=2)
    asked = []
    monkeypatch.setattr(text_to_splats, "textured_mesh", lambda *given: asked.append(given))
    made.mesh()
    made.mesh(texture=96)
    (shape, config, cameras), (_, other, _) = asked
    assert other == replace(made.config.mesh, texture=96)
    assert shape is made.shape and config == made.config.mesh
    assert torch.equal(cameras.c2w, views_around(made.config.optimise.views).c2w)


@pytest.mark.parametrize("config", [SD_SCHEDULE, {**SD_SCHEDULE, "prediction_type": "v_prediction"}, FLOW_SCHEDULE],
                         ids=["eps", "v", "flow"])  # fmt: skip
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "perp-neg"])  # which mixes embeddings
def test_every_packaged_rule_optimises(rule, config):
    if rule == "vsd":
        with pytest.raises(InputError, match="needs a prior with a network"):
            TextToSplats(prior(config), load_config(MeshRecipe, SMALL), rule)("dark", num_inference_steps=1)
        return
    pipe = TextToSplats(prior(config), load_config(MeshRecipe, SMALL), rule)
    made = pipe("dark", "light", num_inference_steps=2)
    assert made.nfe > 0 and all(math.isfinite(look["grad"]) for look in made.history)


def test_rules_bring_their_settings_and_leave_the_rest():
    plain, asd = (load_recipe(None, prior(), rule, "text-to-splats") for rule in (None, "asd"))
    assert asd.score.rule.kind == "asd" and asd.score.guidance == 7.5 and asd.score.form == "score"
    assert asd.optimise == plain.optimise and plain.score.rule.kind == "sds" and plain.optimise.guided_px == SIZE


def test_rules_that_are_gradients_get_a_recipe_without_held_targets():
    class Views(GaussianMixturePrior):
        frames, image_size = 4, SIZE

    model = Views(prior().means, prior().stds)
    assert load_recipe(None, model).optimise.fit.steps == 8
    assert load_recipe(None, model, "recon").optimise.fit.steps == 8  # targets of images are held all the same
    for rule in ("asd", "hifa"):
        assert load_recipe(None, model, rule).optimise.fit.steps == 0
    with pytest.raises(InputError, match=r"target_steps|no target image"):
        load_recipe("toybox", model, "asd")
    with pytest.raises(InputError, match="perp_neg is for priors of single images"):
        TextToMesh(model, None, "perp-neg")("a box", num_inference_steps=1)


def test_what_does_not_apply_is_refused(tmp_path):
    small = load_config(MeshRecipe, SMALL)
    with pytest.raises(InputError, match="the rule 'csd' has no guidance scale"):
        TextToSplats(prior(), small, "csd")("dark", guidance_scale=3.0)
    with pytest.raises(InputError, match="kind='volume': text-to-splats optimises gaussians"):
        TextToSplats(prior(), load_config(MeshRecipe, {}))
    with pytest.raises(InputError, match=r"no packaged config 'rules/asdf'.*rules/asd"):
        TextToSplats(prior(), small, "asdf")
    two = load_config(MeshRecipe, {**SMALL, "begin": {"prior": str(tmp_path / "pixels")}})
    with pytest.raises(InputError, match=r"first stage of the recipe: prior '.*pixels'.*train pixels --out"):
        TextToSplats(prior(), two)
    mine = tmp_path / "mine.yaml"
    mine.write_text("rule: {kind: asd, csd: {noise: 0.0}}\nform: score\nrescale: 0.0\n")
    assert TextToSplats(prior(), small, mine).recipe.score.rule.kind == "asd"
    mine.write_text("rule: {kind: asd, sdi: {steps: 3}}\nform: score\nrescale: 0.0\n")
    with pytest.raises(InputError, match=r"score\.rule\.sdi has no meaning"):
        TextToSplats(prior(), small, mine)
    with pytest.raises(InputError, match="pulls on whole renders"):
        load_config(MeshRecipe, {"normals": {"weight": [1.0]}, "optimise": {"fit": {"steps": 1}},
                                 "score": {"space": "image"}})  # fmt: skip


class Lessons:
    """A twin that is one number: the mean of the renders, learnt by gradient."""

    cameras = False
    nfe = 0

    def __init__(self, *_: object) -> None:
        from unproject.core.training.players import Moves, Player

        self.parts = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(self.parts.weight)
        adam = lambda groups: torch.optim.Adam(groups, lr=0.05)  # noqa: E731
        self.made = Player("twin", {"twin": self.parts}, adam, moves=Moves(after="shape"))

    def player(self):
        return self.made

    def told(self, x, condition):
        from unproject.core.sampling.prediction import Prediction

        self.x = x.detach()
        return lambda state, level: Prediction(state, level, self.parts.weight.detach() + 0 * state, "sample")

    def loss(self, rng):
        from unproject.core.training.loss import LossOut

        jitter = torch.randn(self.x.shape, generator=rng)
        return LossOut((self.parts.weight - self.x - 0.1 * jitter).square().mean(), {})


def test_a_resumed_run_with_a_twin_is_equal_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.setattr("unproject.core.distillation.twin.Twin", Lessons)
    recipe = load_recipe(load_config(MeshRecipe, SMALL), prior(), "vsd")
    from unproject.generate.guides import make_guide

    def begun() -> Optimisation:
        return Optimisation(recipe.optimise, make_guide(recipe.score, prior(), "dark"), 5)

    whole = begun()
    whole.run()
    first = begun()

    def stop(work, step, log):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run(tmp_path, stop)
    second = begun()
    assert second.resume(tmp_path) and second.step == 4
    second.run(tmp_path)
    assert whole.guide.twin.parts.weight.abs().item() > 0.05
    assert torch.equal(whole.guide.twin.parts.weight, second.guide.twin.parts.weight)
    for name, value in whole.shape.state_dict().items():
        assert torch.equal(value, second.shape.state_dict()[name]), name
    assert "grad" in whole.history[0] and "twin/loss" in whole.history[0]


def test_a_first_stage_with_another_prior_is_gone_on_from(tmp_path, monkeypatch):
    """Its shape is where the run begins, its rows are counted, and an interrupted second stage goes on to the bit."""
    from unproject.pipelines import text_to_shape

    other = prior({**SD_SCHEDULE, "prediction_type": "v_prediction"})
    other.name = "other"
    monkeypatch.setattr(text_to_shape, "load_prior", lambda name, *_: {"other": other}[name])
    both = load_config(MeshRecipe, {**SMALL, "begin": {"prior": "other", "steps": 3, "score": SMALL["score"]}})
    seen: list[torch.Tensor] = []

    def look(pipe, step, log, extra):
        seen.append(extra["optimisation"].shape.means.detach().clone())

    whole = TextToSplats(prior(), both)("dark", seed=1, out=tmp_path / "whole", callback_on_step_end=look)
    assert whole.nfe == (3 + 6) * 4 and len(whole.history) == 6
    assert (tmp_path / "whole" / "first" / "LATEST").read_text().strip() == "ckpt-3"
    alone = TextToSplats(prior(), load_config(MeshRecipe, SMALL))("dark", seed=1)
    assert not torch.equal(alone.shape.means, whole.shape.means)

    def stop(pipe, step, log, extra):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TextToSplats(prior(), both)("dark", seed=1, out=tmp_path / "part", callback_on_step_end=stop)
    again = TextToSplats(prior(), both)("dark", seed=1, out=tmp_path / "part")
    assert torch.equal(again.shape.means, whole.shape.means) and again.nfe == whole.nfe
    with pytest.raises(InputError, match="another begin"):
        fewer = load_config(MeshRecipe, {**SMALL, "begin": {"prior": "other", "steps": 2, "score": SMALL["score"]}})
        monkeypatch.setattr(text_to_shape, "remove_checkpoints", lambda folder: None)
        (tmp_path / "part" / "first").rename(tmp_path / "aside")
        TextToSplats(prior(), fewer)("dark", seed=1, out=tmp_path / "part")


def test_score_settings_of_every_rule_are_valid():
    for rule in RULES:
        score = load_config(ScoreConfig, f"rules/{rule}")
        assert score.rescale == 0 or rule == "recon"
