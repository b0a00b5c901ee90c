"""A universal perturbation is that of the formula where the ELBO is linear, and of a grid where the range cuts it."""

import copy
from typing import Any

import pytest
import torch
from linear_networks import LATENT, PIXELS, Round, linear_vae
from torch import Tensor

from paperlib import VAE, Gaussian, LinfBall, elbo, mlp_vae
from paperlib.threats.perturbation import PerturbationSet
from paperlib.threats.shifts import add, around_zero
from paperlib.threats.universal import transfer, universal_attack

COUNT = 12


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(count: int = COUNT) -> Tensor:
    return torch.randn(count, LATENT, generator=seeded(9), dtype=torch.float64)


def digits(count: int = COUNT, seed: int = 0) -> Tensor:
    kind, grey = torch.rand(2, count, PIXELS, generator=seeded(seed), dtype=torch.float64)
    return torch.where(kind < 0.5, 0.0, torch.where(kind > 0.8, 1.0, grey))


class Curve(Gaussian):
    """log p(t) = sum over pixels of slope . t + bend . (t - 1/2)^2: the ELBO is this function of the input alone."""

    def __init__(self, slope: Tensor, bend: float = 0.0):
        super().__init__()
        self.slope, self.bend = slope, bend

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        return (self.slope * target + self.bend * (target - 0.5).square()).sum(1) + 0 * output.sum(1)


def curve_vae(slope: Tensor, bend: float = 0.0) -> VAE:
    vae = linear_vae()
    with torch.no_grad():
        vae.encoder.weight.zero_()
    vae.likelihood = Curve(slope, bend)
    return vae


SLOPE = torch.tensor([1.0, -2.0, 0.5, -0.1, 3.0, -1.0]).double()


def test_on_a_linear_elbo_it_is_the_closed_form_of_the_box() -> None:
    x = 0.3 + 0.4 * torch.rand(COUNT, PIXELS, generator=seeded()).double()
    shift = universal_attack(curve_vae(SLOPE), x, LinfBall(0.1), draw(), epochs=3, batch_size=5)
    assert torch.equal(shift, -0.1 * SLOPE.sign())
    radii = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.0, 0.05]).double()
    shift = universal_attack(curve_vae(SLOPE), x, LinfBall(radii), draw(), epochs=3, batch_size=5)
    assert torch.equal(shift, -radii * SLOPE.sign())


def test_on_a_linear_elbo_it_is_the_closed_form_of_an_l2_ball() -> None:
    x = torch.rand(COUNT, PIXELS, generator=seeded()).double()
    shift = universal_attack(curve_vae(SLOPE), x, Round(0.4), draw(), epochs=3, batch_size=5)
    torch.testing.assert_close(shift, -0.4 * SLOPE / SLOPE.norm())


def test_on_a_linear_elbo_all_that_it_does_carries_over_to_other_inputs() -> None:
    x, others = (0.3 + 0.4 * torch.rand(2, COUNT, PIXELS, generator=seeded())).double()
    vae, ball = curve_vae(SLOPE), LinfBall(0.1)
    shift = universal_attack(vae, x, ball, draw())
    rows = transfer(vae, others, ball, draw(), shift)
    assert list(rows.columns) == ["index", "clean", "attacked"] and list(rows["index"]) == list(range(COUNT))
    assert (rows["clean"] - rows["attacked"]).to_numpy() == pytest.approx(0.1 * SLOPE.abs().sum().item())


class Kink(Curve):
    """`Curve`, but for pixel 0: there log p falls by 3 for each unit above 0.85, and rises by 1 below."""

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        first = target[:, 0]
        return super().log_prob(output[:, 1:], target[:, 1:]) + torch.where(first > 0.85, 3 * (1 - first), first)


def test_examples_at_an_end_of_the_data_range_do_not_follow_outwards() -> None:
    # At pixel 0 the gradients sum to -3 + 1 and ask for a brighter one, but the white example that asks for it cannot
    # follow, and the grey one gains by it: no shift of this pixel lowers the mean.
    x, ball = torch.full((2, PIXELS), 0.5).double(), LinfBall(0.1)
    x[0, 0] = 1.0
    vae = curve_vae(SLOPE)
    vae.likelihood = Kink(SLOPE[1:])
    expected = torch.cat([torch.zeros(1).double(), -0.1 * SLOPE[1:].sign()])
    grid = expected.repeat(41, 1)
    grid[:, 0] = torch.arange(-20, 21).double() / 200
    means = torch.stack([elbo(vae, add(shift, x, ball), draw(2)).mean() for shift in grid])
    assert torch.equal(grid[means.argmin()], expected)
    assert torch.equal(universal_attack(vae, x, ball, draw(2), epochs=3), expected)


def test_the_best_shift_is_kept_where_later_ones_are_worse() -> None:
    # Every shift of this valley is worse than none, though at its bottom the gradient is that of one side.
    class Valley(Curve):
        def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
            return torch.where(target < 0.5, 0.5 - target, target - 0.5).sum(1) + 0 * output.sum(1)

    vae, x = curve_vae(SLOPE), torch.full((2, PIXELS), 0.5).double()
    vae.likelihood = Valley(SLOPE)
    assert torch.equal(universal_attack(vae, x, LinfBall(0.1), draw(2), epochs=3), torch.zeros(PIXELS).double())


def test_on_a_convex_elbo_it_is_as_good_as_the_best_of_a_grid() -> None:
    bend = 3.0
    x, ball, vae = digits(), LinfBall(0.3), curve_vae(SLOPE, bend)
    shift = universal_attack(vae, x, ball, draw(), epochs=60, batch_size=COUNT)
    reached = elbo(vae, add(shift, x, ball), draw()).mean()
    # the pixels do not mix, so each has its own best shift
    grid = torch.linspace(-0.3, 0.3, 601, dtype=torch.float64)
    points = (x[None] + grid[:, None, None]).clamp(0, 1)
    values = SLOPE * points + bend * (points - 0.5).square()
    least = values.mean(1).min(0).values.sum()
    constant = elbo(vae, x, draw()).mean() - (SLOPE * x + bend * (x - 0.5).square()).sum(1).mean()
    clean = elbo(vae, x, draw()).mean()
    assert least + constant - 1e-3 <= reached <= least + constant + 0.02 * (clean - least - constant)


def test_the_mean_is_never_above_the_clean_one_and_no_example_leaves_its_set() -> None:
    torch.manual_seed(0)
    vae = mlp_vae((2, PIXELS), (16,), LATENT).double()
    x, ball = torch.rand(COUNT, 2, PIXELS, generator=seeded()).double(), LinfBall(0.2)
    shift = universal_attack(vae, x, ball, draw(), epochs=2, batch_size=5, generator=seeded())
    assert shift.shape == (2, PIXELS) and shift.abs().max() <= 0.2
    assert ball.box(x).contains(add(shift, x, ball)).all()
    rows = transfer(vae, x, ball, draw(), shift)
    assert rows["attacked"].mean() < rows["clean"].mean()
    with torch.no_grad():
        assert torch.equal(torch.tensor(rows["clean"]), elbo(vae, x, draw()))
        shifted = (x + shift).clamp(0, 1)
        torch.testing.assert_close(torch.tensor(rows["attacked"]), elbo(vae, shifted, draw()))
    assert not shift.requires_grad and all(parameter.grad is None for parameter in vae.parameters())


def test_the_generator_decides_the_order_of_the_batches() -> None:
    torch.manual_seed(0)
    vae, x = mlp_vae((PIXELS,), (16,), LATENT).double(), digits()
    first, again, other = (
        universal_attack(vae, x, LinfBall(0.2), draw(), 2, 3, generator=seeded(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_shifts_of_a_ball_are_as_free_as_the_data_range_is_wide() -> None:
    free = around_zero(LinfBall(2.0), 1.0)
    zero = torch.zeros(1, PIXELS)
    assert torch.equal(free.box(zero).lower, zero - 1) and torch.equal(free.box(zero).upper, zero + 1)
    white = universal_attack(curve_vae(SLOPE), torch.ones(2, PIXELS).double(), LinfBall(2.0), draw(2))
    assert torch.equal(add(white, torch.ones(2, PIXELS).double(), LinfBall(2.0))[0], (SLOPE < 0).double())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "at least one epoch and one example.*got epochs=0, batch_size=100, 12 examples"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"x": digits(0), "noise": draw(0)}, "0 examples"),
        ({"ball": LinfBall(torch.full((COUNT, 1), 0.1))}, "a set of one size, this one has a size for each"),
        ({"ball": LinfBall(0.1, -1.0, 1.0)}, "Bernoulli explains targets"),
        ({"noise": draw(3)}, "noise must be"),
        ({"x": digits() * 2}, r"x must be finite and in \[0"),
        ({"x": digits()[:, :5]}, "does not fit the model"),
    ],
)
def test_bad_input_is_one_clear_error(change: dict[str, Any], message: str) -> None:
    vae = mlp_vae((PIXELS,), (16,), LATENT).double()
    arguments: dict[str, Any] = {"vae": vae, "x": digits(), "ball": LinfBall(0.1), "noise": draw(), **change}
    with pytest.raises(ValueError, match=message):
        universal_attack(**arguments)


def test_a_shift_of_another_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"shape of one example, \[6\], got \[1, 6\]"):
        transfer(curve_vae(SLOPE), digits(), LinfBall(0.1), draw(), torch.zeros(1, PIXELS).double())


def test_it_runs_in_inference_mode_and_on_what_was_made_there() -> None:
    vae, x, noise = mlp_vae((PIXELS,), (16,), LATENT).double(), digits(), draw()
    expected = universal_attack(vae, x, LinfBall(0.1), noise, 2, generator=seeded())
    with torch.inference_mode():
        made = copy.deepcopy(vae), x.clone(), noise.clone()
        assert torch.equal(universal_attack(made[0], made[1], LinfBall(0.1), made[2], 2, generator=seeded()), expected)


def test_a_set_that_is_no_dataclass_is_an_error_that_names_it() -> None:
    methods = ("unchecked_region", "sound_region", "sample", "steepest", "size", "label")
    bare = type("Bare", (PerturbationSet,), dict.fromkeys(methods))()
    with pytest.raises(TypeError, match="Bare must be a dataclass with the fields low and high"):
        around_zero(bare, 1.0)
