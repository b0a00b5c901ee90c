"""Which layer loosens the bound: boxes contain every value that is reached, stage by stage."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paperlib import VAE, Bernoulli, LinfBall, conv_vae, elbo, elbo_bounds, mlp_vae, pgd
from paperlib.certificates.intervals import IntervalBounds
from paperlib.paper.looseness import looseness, stage_boxes, stage_values

BALL = LinfBall(0.1)
MLP_STAGES = ["input", "encoder 1", "encoder 2", "latent", "decoder 1", "decoder 2"]


def mlp(hidden: tuple[int, ...] = (8,)) -> VAE:
    return mlp_vae((12,), hidden, 2).double()


def conv() -> VAE:
    return conv_vae((1, 8, 8), (2, 3), 2).double()


MODELS: dict[str, Any] = {"mlp": (mlp, (12,)), "deep mlp": (lambda: mlp((8, 7)), (12,)), "conv": (conv, (1, 8, 8))}


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple[VAE, Tensor, Tensor]:
    build, shape = MODELS[request.param]
    torch.manual_seed(0)
    return build(), torch.rand(3, *shape).double(), torch.randn(3, 2).double()


def test_each_box_contains_all_values_of_its_stage(case: tuple[VAE, Tensor, Tensor]) -> None:
    vae, x, noise = case
    with torch.no_grad():
        known = stage_boxes(vae, BALL.box(x), noise)
        for seed in range(50):
            point = BALL.sample(x, torch.Generator().manual_seed(seed))
            if seed % 2:
                point = torch.where(point > x, BALL.box(x).upper, BALL.box(x).lower)  # a corner
            values = stage_values(vae, point, noise)
            assert list(values) == list(known)
            for name, value in values.items():
                slack = 1e-12 * (1 + value.abs())
                assert ((known[name].lower <= value + slack) & (value <= known[name].upper + slack)).all(), name


def test_the_stages_end_where_the_certificate_ends(case: tuple[VAE, Tensor, Tensor]) -> None:
    vae, x, noise = case
    box = BALL.box(x)
    known, certificate = stage_boxes(vae, box, noise), IntervalBounds.of(vae, box, noise, box)
    assert next(iter(known)) == "input" and known["input"] is box
    for ours, theirs in ((known["latent"], certificate.latent), (list(known.values())[-1], certificate.output)):
        torch.testing.assert_close(ours.lower.flatten(1), theirs.lower.flatten(1), rtol=0, atol=1e-12)
        torch.testing.assert_close(ours.upper.flatten(1), theirs.upper.flatten(1), rtol=0, atol=1e-12)


def test_the_values_are_those_of_the_network(case: tuple[VAE, Tensor, Tensor]) -> None:
    vae, x, noise = case
    with torch.no_grad():
        values = stage_values(vae, x, noise)
        mean, log_var = vae.encode(x)
        latent = mean + (log_var / 2).exp() * noise
        torch.testing.assert_close(values["latent"], latent)
        torch.testing.assert_close(list(values.values())[-1].flatten(1), vae.decoder(latent).flatten(1))
    assert values["input"] is x


def test_there_is_one_stage_for_each_affine_layer() -> None:
    vae, x, noise = mlp(), torch.rand(1, 12).double(), torch.zeros(1, 2).double()
    assert list(stage_values(vae, x, noise)) == MLP_STAGES
    assert len(stage_values(mlp((8, 7)), x, noise)) == len(MLP_STAGES) + 2


def test_a_box_is_never_narrower_than_what_is_reached(case: tuple[VAE, Tensor, Tensor]) -> None:
    vae, x, noise = case
    rows = looseness(vae, x, BALL, noise, units=6, steps=5)
    assert list(rows.columns) == ["stage", "box", "reached"]
    assert rows["stage"].tolist() == [*stage_values(vae, x, noise), "ELBO"]
    assert (rows["reached"] > 0).all()
    assert (rows["box"] >= rows["reached"] * (1 - 1e-12)).all()


def test_the_first_affine_layer_is_reached_exactly() -> None:
    torch.manual_seed(0)
    vae, x, noise = mlp(), torch.rand(3, 12).double(), torch.randn(3, 2).double()
    rows = looseness(vae, x, BALL, noise, units=8, steps=1).set_index("stage")
    assert rows["reached"]["input"] == pytest.approx(rows["box"]["input"], rel=1e-9)
    assert rows["reached"]["encoder 1"] == pytest.approx(rows["box"]["encoder 1"], rel=1e-9)
    assert rows["box"]["decoder 2"] > 1.01 * rows["reached"]["decoder 2"]


def test_the_last_stage_is_what_bound_and_attack_take_off_the_elbo() -> None:
    torch.manual_seed(0)
    vae, x, noise = mlp(), torch.rand(3, 12).double(), torch.randn(3, 2).double()
    last = looseness(vae, x, BALL, noise, units=2, steps=1).iloc[-1]
    with torch.no_grad():
        clean = elbo(vae, x, noise)
        assert last["box"] == pytest.approx((clean - elbo_bounds(vae, x, BALL, noise).lower).mean().item())
        assert last["reached"] == pytest.approx((clean - elbo(vae, pgd(vae, x, BALL, noise), noise)).mean().item())


def test_the_same_seed_gives_the_same_rows_and_leaves_no_gradient() -> None:
    torch.manual_seed(0)
    vae, x, noise = mlp((40,)), torch.rand(3, 12).double(), torch.randn(3, 2).double()
    first, again, other = (looseness(vae, x, BALL, noise, units=3, steps=2, seed=seed) for seed in (0, 0, 1))
    assert first.equals(again) and not first.equals(other)
    assert all(parameter.grad is None for parameter in vae.parameters())


def test_a_network_that_is_no_sequence_has_no_stages() -> None:
    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :4]

    vae = VAE(nn.Sequential(nn.Linear(12, 4)), Own(), Bernoulli(), 2).double()
    with pytest.raises(TypeError, match=r"nn\.Sequential decoder, got Own"):
        stage_values(vae, torch.rand(1, 12).double(), torch.zeros(1, 2).double())
