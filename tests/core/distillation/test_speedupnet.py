"""The negative adapter: identity, the published formula, batches, and what a changed negative prompt does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from unproject.core.distillation.kinds import Lora
from unproject.core.distillation.speedupnet import (
    NegativeAdapter,
    NegativeOffset,
    SpeedingUp,
    SpeedUpObjective,
    negatives,
)
from unproject.core.distillation.student import Student
from unproject.core.distillation.teacher import Teacher
from unproject.core.priors import load_prior
from unproject.pipelines.text_to_image import TextToImage
from unproject.utils.errors import InputError

TEXTS = ["a dog", "a red chair", "the blue wagon"]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def layer(make_unet):
    return make_unet(seed=2).down_blocks[0].attentions[0].transformer_blocks[0].attn2


def moved(module: torch.nn.Module, seed: int = 1) -> torch.nn.Module:
    source = rng(seed)
    with torch.no_grad():
        for p in module.parameters():
            p += 0.3 * torch.randn(p.shape, generator=source)
    return module


def states() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(3, 6, 16, generator=rng(1)), torch.randn(3, 8, 32, generator=rng(2))


def test_at_first_it_is_the_conditional_model(tiny_folders):
    prior = load_prior(tiny_folders["sd"])
    student = Student(prior, NegativeAdapter())
    condition, level = prior.encode_text(TEXTS, "a wagon"), student.schedule.at_index(300)
    x = torch.randn(3, *prior.latent_shape, generator=rng(3))
    with torch.no_grad():
        found = student.ask(x, level, condition)
        torch.testing.assert_close(found.raw, Teacher(prior).predict(x, level, condition).raw, rtol=0, atol=1e-5)
    assert student.prior.negative_embedded and not prior.negative_embedded and 0 < student.trained_share < 0.6
    learning = [name for name, p in student.network.named_parameters() if p.requires_grad]
    assert learning and all(".attn2.processor." in name for name in learning)
    with pytest.raises(InputError, match="no cross-attention"):
        Student(load_prior(tiny_folders["sd3"]), NegativeAdapter())


def test_it_is_the_published_formula(layer):
    """The released processor, written again: whole-tensor norms, two extra branches, batch of one."""
    processor = moved(NegativeOffset(layer, whole=True))
    hidden, text = (one[:1] for one in states())
    plus, minus = text[:, :4], text[:, 4:]
    heads = layer.heads

    def split(z):
        return z.view(1, -1, heads, z.shape[-1] // heads).transpose(1, 2)

    def attention(key, value):
        out = F.softmax(split(layer.to_q(hidden)) @ split(key).transpose(-1, -2) / (16 / heads) ** 0.5, -1) @ split(
            value
        )
        return out.transpose(1, 2).reshape(1, -1, 16)

    with torch.no_grad():
        plain = attention(layer.to_k(plus), layer.to_v(plus))
        parts = []
        for branch, words in ((processor.negative, minus), (processor.positive, plus)):
            own = attention(branch.to_k(words), branch.to_v(words))
            parts.append(own * (torch.norm(plain) / torch.norm(own)) * branch.alpha + branch.beta)
        wanted = layer.to_out[0](plain - parts[0] + parts[1])
        found = processor(layer, hidden, text)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_norms_of_each_sample_do_not_see_the_batch(layer):
    hidden, text = states()
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        each = moved(NegativeOffset(layer))
        torch.testing.assert_close(each(layer, hidden, text)[order], each(layer, hidden[order], text[order]))
        torch.testing.assert_close(each(layer, hidden, text)[:1], each(layer, hidden[:1], text[:1]))
        whole = moved(NegativeOffset(layer, whole=True))
        assert (whole(layer, hidden, text)[:1] - whole(layer, hidden[:1], text[:1])).abs().max() > 1e-4


def test_equal_keys_and_texts_cancel_the_attention(layer):
    """K' = K, V' = V, C- = C+, a- = 1: A0 - A0 + (the third branch)."""
    processor, (hidden, text) = NegativeOffset(layer), states()
    same = torch.cat([text[:, :4], text[:, :4]], 1)
    with torch.no_grad():
        processor.negative.alpha.fill_(1.0)
        processor.positive.beta.fill_(0.7)
        wanted = layer.to_out[0](torch.full((3, 6, 16), 0.7))
        torch.testing.assert_close(processor(layer, hidden, same), wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="as many tokens"):
        processor(layer, hidden, text[:, :5])


def test_a_pipeline_reads_the_negative_prompt_in_one_call(tiny_folders):
    prior = load_prior(tiny_folders["sd"])
    student = Student(prior, NegativeAdapter())
    for name, module in student.network.named_modules():
        if name.endswith("processor"):
            moved(module)
    pipe = TextToImage(student.prior)
    settings = {"seed": 1, "num_inference_steps": 2, "output_type": "latent", "solver": "ddim", "guidance_scale": 1.0}
    first, second = (pipe("a dog", words, **settings) for words in ("a chair", "blue"))
    assert first.nfe == 2 and (first.latents - second.latents).abs().max() > 1e-3


def test_the_objective_teaches_what_the_negative_prompt_does(tiny_folders):
    prior = load_prior(tiny_folders["sd-v"])
    objective = SpeedUpObjective(Student(prior, NegativeAdapter()), Teacher(prior), SpeedingUp(3.0, 3, 2, 2))
    batch = {"latents": torch.randn(3, 4, 8, 8, generator=rng(4)), "captions": TEXTS}
    first, again = (objective.loss(batch, rng(5), 0) for _ in range(2))
    assert torch.equal(first.loss, again.loss)
    first.loss.backward()
    before = [p.detach().clone() for p in objective.student.network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam([p for p in objective.student.network.parameters() if p.requires_grad], 3e-3)
    for _ in range(12):
        optimizer.zero_grad()
        objective.loss(batch, rng(5), 0).loss.backward()
        optimizer.step()
    assert objective.loss(batch, rng(5), 0).loss < 0.9 * first.loss
    assert any(not torch.equal(a, b) for a, b in zip(before, objective.student.network.parameters()))
    assert negatives(TEXTS, 1.0, rng()) == [""] * 3
    assert set(negatives(TEXTS, 0.0, rng(3))) <= {*TEXTS, ""}


def test_files_bring_it_back(tiny_folders, tmp_path):
    prior = load_prior(tiny_folders["sd"])
    student, fresh = Student(prior, NegativeAdapter()), Student(prior, NegativeAdapter())
    moved(student.network.mid_block.attentions[0].transformer_blocks[0].attn2.processor)
    fresh.load(student.save(tmp_path / "s"))
    assert all(torch.equal(v, fresh.network.state_dict()[k]) for k, v in student.network.state_dict().items())
    with pytest.raises(InputError, match="another student"):
        Student(prior, Lora(2, 2)).load(tmp_path / "s")
