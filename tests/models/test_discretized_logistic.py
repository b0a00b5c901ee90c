"""The discretised logistic against mpmath and against the sum over all levels."""

import mpmath
import pytest
import torch

from paperlib import DiscretizedLogistic

LEVELS = torch.arange(256).double() / 255


def exact(mean: float, target: float, scale: float, half_bin: float) -> mpmath.mpf:
    """By the definition: the logistic mass of the bin around the target, which is open where it leaves [0, 1]."""

    def below(v: mpmath.mpf) -> mpmath.mpf:
        return 1 / (1 + mpmath.exp(-(v - mpmath.mpf(mean)) / mpmath.mpf(scale)))

    t, w = mpmath.mpf(target), mpmath.mpf(half_bin)
    return mpmath.log((1 if t > 1 - w else below(t + w)) - (0 if t < w else below(t - w)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.002, 0.05, 3.0])
def test_the_density_is_exact_even_far_out_in_its_tails(scale: float, dtype: torch.dtype) -> None:
    likelihood = DiscretizedLogistic(scale).to(dtype)
    targets = [0.0, 1e-3, 0.0019, 0.00197, 3 / 255, 0.4, 0.5, 0.997, 0.9985, 1.0]
    means = [-1.0, 0.0, 0.01, 0.4, 0.5, 1.0, 2.0]
    mean, target = torch.cartesian_prod(torch.tensor(means), torch.tensor(targets)).to(dtype).T
    terms, held = likelihood.terms(mean, target), (likelihood.scale.item(), likelihood.half_bin.item())
    assert held[1] == pytest.approx(1 / 510, rel=1e-7)
    unit = torch.finfo(dtype).eps / 2
    with mpmath.workdps(480):  # a tail of exp(-1000) beside 1
        for m, t, value in zip(mean.tolist(), target.tolist(), terms.tolist(), strict=True):
            truth = exact(m, t, *held)
            assert abs(value - truth) <= 20 * unit * (1 + abs(m - t) / scale + abs(truth)), (m, t)


@pytest.mark.parametrize("mean", [-0.5, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("scale", [0.005, 0.1, 1.0])
def test_the_probabilities_of_all_levels_add_up_to_1_and_have_the_mean(scale: float, mean: float) -> None:
    likelihood = DiscretizedLogistic(scale).double()
    output = torch.full_like(LEVELS, mean)
    probabilities = likelihood.terms(output, LEVELS).exp()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)  # 1 / 510 is held as a float32
    expected = (probabilities * LEVELS).sum().item()
    assert likelihood.mean(output[:1]).item() == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(likelihood.log_prob(output[None], LEVELS[None]), probabilities.log().sum()[None])


def test_a_bin_is_open_as_soon_as_it_reaches_beyond_the_range() -> None:
    likelihood = DiscretizedLogistic(0.1).double()
    w = likelihood.half_bin.item()
    targets = torch.tensor([w - 1e-9, w, 1 - w, 1 - w + 1e-9]).double()
    open_below, open_above = likelihood.open_ends(targets)
    assert open_below.tolist() == [True, False, False, False] and open_above.tolist() == [False, False, False, True]
    values = likelihood.terms(torch.full((4,), 0.5).double(), targets)
    assert values[0] > values[1] and values[3] > values[2], "an open bin holds more"
    # in float32 the same targets are open
    single = torch.tensor([w, 1 - w, 1 - w + 2**-24])
    assert [part.tolist() for part in DiscretizedLogistic(0.1).open_ends(single)] == [
        part.tolist() for part in likelihood.open_ends(single.double())
    ]


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_a_scale_that_is_none_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=f"scale must be positive and finite, got {scale}"):
        DiscretizedLogistic(scale)
