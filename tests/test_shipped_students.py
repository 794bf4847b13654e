"""The students that lie beside the embedded prior: small files, found by name, that draw what they are told."""

from __future__ import annotations

import pytest
import torch

from unproject.bench.registry import EXPERIMENTS
from unproject.bench.students import SHIPPED
from unproject.core.distillation.export import load_student
from unproject.core.priors import load_prior
from unproject.core.sampling.plan import SamplingPlan
from unproject.pipelines.text_to_image import TextToImage
from unproject.toybox.captions import say
from unproject.toybox.judge import Judge
from unproject.toybox.samples import plain_meaning
from unproject.utils.files import read_json, weights_root

TOGETHER_MB = 6
PROMPTS = 24
STEPS = {"toybox-lcm": 4, "toybox-1step": 1, "toybox-small": 8, "toybox-w4": 8}


@pytest.fixture(scope="module")
def meanings():
    return [plain_meaning("val", i) for i in range(PROMPTS)]


def right(pipe: TextToImage, meanings, **settings) -> int:
    """How many pictures show the noun and the colour of their prompt."""
    images = pipe([say(one) for one in meanings], seed=100, output_type="pt", **settings).images
    agrees = Judge.from_pretrained()(images).agrees(meanings)
    return int((agrees["noun"] & agrees["colour"]).sum())


def test_their_table_rests_on_them():
    assert set(SHIPPED) <= set(EXPERIMENTS["students"].rests_on("toybox"))


def test_they_are_small_together():
    files = [path for name in SHIPPED for path in (weights_root() / name).rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} >= set(SHIPPED)
    assert sum(path.stat().st_size for path in files) < TOGETHER_MB * 1e6


@pytest.mark.parametrize("name", SHIPPED)
def test_each_draws_what_it_is_told(meanings, name):
    student = load_student(name)
    assert right(TextToImage(student), meanings, num_inference_steps=STEPS[name]) >= 0.8 * PROMPTS


def test_one_call_of_the_student_shows_more_than_one_of_the_prior(meanings):
    prior = TextToImage.from_pretrained("toybox", quality="native")
    plain = right(prior, meanings, num_inference_steps=1, guidance_scale=3.0)
    assert right(TextToImage(load_student("toybox-1step")), meanings, num_inference_steps=1) >= plain + PROMPTS // 4


def test_the_smaller_network_asks_less_of_a_processor():
    whole, small = load_prior("toybox"), load_student("toybox-small")
    sizes = [sum(value.numel() for value in one.network.parameters()) for one in (whole, small)]
    assert sizes[1] < 0.6 * sizes[0]


def test_turbo_is_the_student_of_four_steps(meanings):
    pipe = TextToImage.from_pretrained("toybox", quality="turbo")
    about = read_json(weights_root() / "toybox-lcm" / "distill.json")
    assert SamplingPlan.of(pipe.prior.recommended).steps == 4 == about["sampling"]["steps"]
    made = pipe(say(meanings[0]), seed=3, output_type="pt")
    again = TextToImage(load_student("toybox-lcm"))(say(meanings[0]), seed=3, output_type="pt")
    assert torch.equal(made.images, again.images)
