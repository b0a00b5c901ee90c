"""The path over lambda against minima worked out by hand, and the area under its curve."""

import itertools
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from paperlib import VAE, Gaussian, mlp_vae
from paperlib.threats.distortion import LAMBDAS, auddc, distortion_path


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def identity_vae() -> VAE:
    """One pixel, one latent, posterior N(x, 1), dec(x) = x."""
    encoder, decoder = nn.Linear(1, 2), nn.Linear(1, 1)
    with torch.no_grad():
        encoder.weight.copy_(torch.tensor([[1.0], [0.0]]))
        encoder.bias.zero_()
        decoder.weight.fill_(1.0)
        decoder.bias.zero_()
    return VAE(encoder, decoder, Gaussian(), 1).double()


def column(*values: float) -> Tensor:
    return torch.tensor(values).double()[:, None]


def test_the_path_of_a_shift_by_one_is_that_worked_out_by_hand() -> None:
    # min over d of  lambda d^2 + (1 - d)^2 / 2  is at d = 1 / (1 + 2 lambda)
    lambdas = (0.0, 0.5, 1.0, 8.0)
    rows = distortion_path(identity_vae(), column(0.0), column(1.0), lambdas, steps=400)
    assert list(rows["lambda"]) == list(lambdas) and list(rows["index"]) == [0] * 4
    expected = {
        "norm": [1, 1 / 2, 1 / 3, 1 / 17],
        "divergence": [0, 1 / 8, 2 / 9, 128 / 289],
        "input_distortion": [1, 1 / 2, 1 / 3, 1 / 17],
        "latent_distortion": [0, 1 / 4, 4 / 9, 256 / 289],
        "output_distortion": [0, 1 / 2, 2 / 3, 16 / 17],
    }
    for name, values in expected.items():
        assert rows[name].to_numpy() == pytest.approx(values, abs=2e-3), name
    # trapezoids through (0, 1) (1/17, 256/289) (1/3, 4/9) (1/2, 1/4) (1, 0); and under the line from (0, 1) to (1, 0)
    assert auddc(rows, "latent").loc[0] == pytest.approx(0.3584, abs=3e-3)
    assert auddc(rows).loc[0] == pytest.approx(0.5, abs=2e-3)


def test_distortions_are_relative_to_the_distances_of_each_target() -> None:
    # Twice as far is four times the divergence and four times the penalty, so the same share of the way.
    rows = distortion_path(identity_vae(), column(0.0, 0.0, 1.0), column(1.0, 0.5, 0.5), (0.25,), steps=400)
    assert rows["norm"].to_numpy() == pytest.approx([2 / 3, 1 / 3, 1 / 3], abs=2e-3)
    assert rows["input_distortion"].to_numpy() == pytest.approx([2 / 3] * 3, abs=4e-3)
    assert rows["output_distortion"].to_numpy() == pytest.approx([1 / 3] * 3, abs=4e-3)


def test_the_output_distortion_leaves_out_what_the_model_rebuilds_wrongly_anyway() -> None:
    vae = identity_vae()
    with torch.no_grad():
        vae.decoder.bias.fill_(-0.25)  # dec(x) = x - 1/4, so that the target 1 is rebuilt with the error 1/4
    rows = distortion_path(vae, column(0.0), column(1.0), (0.0, 0.5), steps=400)
    # at d = 1/2:  (|1/4 - 1| - 1/4) / (|-1/4 - 1| - 1/4)
    assert rows["output_distortion"].to_numpy() == pytest.approx([0.0, 0.5], abs=4e-3)


def test_the_search_stays_in_the_data_range() -> None:
    # The mean is x_1 + x_2 / 2, so the shortest way would raise pixel 1 most, but 0.1 is all that it can rise. The rest
    # is for pixel 2:  lambda (0.1^2 + d^2) + (1 - d)^2 / 8  is least at d = 1 / (1 + 8 lambda).
    encoder, decoder = nn.Linear(2, 2, bias=False), nn.Linear(1, 2)
    with torch.no_grad():
        encoder.weight.copy_(torch.tensor([[1.0, 0.5], [0.0, 0.0]]))
    vae = VAE(encoder, decoder, Gaussian(), 1).double()
    x, toward = torch.tensor([[[0.9, 0.0]], [[1.0, 1.0]]]).double()
    rows = distortion_path(vae, x, toward, (0.01,), steps=400)
    assert rows["norm"].item() == pytest.approx((0.1**2 + 1 / 1.08**2) ** 0.5, abs=5e-3)


def test_a_model_that_rebuilds_the_target_no_better_from_itself_has_no_output_distortion() -> None:
    vae = identity_vae()
    with torch.no_grad():
        vae.decoder.weight.fill_(-1.0)  # dec(0) = 0 is nearer to 1 than dec(1) = -1
    rows = distortion_path(vae, column(0.0), column(1.0), (0.0, 1.0), steps=20)
    assert rows["output_distortion"].isna().all() and rows["latent_distortion"].notna().all()
    assert auddc(rows).isna().all() and auddc(rows, "latent").notna().all()


def test_the_area_of_rows_in_any_order_by_hand() -> None:
    rows = pd.DataFrame(
        {
            "index": [7, 3, 7, 7, 3],
            "input_distortion": [0.6, 0.0, 0.2, 1.4, 0.5],
            "output_distortion": [0.5, 1.0, 0.5, 0.1, 0.0],
            "latent_distortion": [0.0, 1.0, 0.0, 0.1, 1.0],
        }
    )
    # index 7: (0, 1) (0.2, 0.5) (0.6, 0.5) (1, 0.5), beyond the target left out; index 3: (0, 1) (0.5, 0) (1, 0)
    areas = auddc(rows)
    assert areas.loc[7] == pytest.approx(0.15 + 0.2 + 0.2) and areas.loc[3] == pytest.approx(0.25)
    areas = auddc(rows, "latent")
    assert areas.loc[7] == pytest.approx(0.1) and areas.loc[3] == pytest.approx(1.0)
    assert list(auddc(rows).index) == [3, 7]


def test_the_default_penalties_are_zero_and_fifty_powers_of_two() -> None:
    assert len(LAMBDAS) == 51 and LAMBDAS[:2] == (0.0, 2.0**-20) and LAMBDAS[-1] == 2.0**20
    ratios = [b / a for a, b in itertools.pairwise(LAMBDAS[1:])]
    assert ratios == pytest.approx([2 ** (40 / 49)] * 49)


def test_along_a_growing_penalty_distortion_never_grows_and_divergence_never_falls() -> None:
    torch.manual_seed(0)
    vae = mlp_vae((2, 5), (16,), 3).double()
    x, toward = torch.rand(2, 6, 2, 5, generator=seeded()).double()
    rows = distortion_path(vae, x, toward, steps=20)
    for _, path in rows.groupby("index"):
        assert list(path["lambda"]) == list(LAMBDAS)
        assert (path["norm"].diff().dropna() <= 1e-12).all()
        assert (path["divergence"].diff().dropna() >= -1e-12).all()
        assert path["norm"].iloc[-1] < 1e-3
    assert rows["norm"].max() > 0
    assert auddc(rows, "latent").between(0, 1).all()
    assert all(parameter.grad is None for parameter in vae.parameters())


def test_each_row_is_no_worse_than_staying_at_x() -> None:
    torch.manual_seed(0)
    vae = mlp_vae((10,), (16,), 3).double()
    x, toward = torch.rand(2, 6, 10, generator=seeded()).double()
    rows = distortion_path(vae, x, toward, (0.0, 0.01, 1.0), "wasserstein", steps=1)
    stay = rows["divergence"] / rows["latent_distortion"]
    assert (rows["lambda"] * rows["norm"] ** 2 + rows["divergence"] <= stay + 1e-12).all()


def test_examples_do_not_influence_each_other() -> None:
    torch.manual_seed(0)
    vae = mlp_vae((10,), (16,), 3).double()
    x, toward = torch.rand(2, 3, 10, generator=seeded()).double()
    together = distortion_path(vae, x, toward, (0.0, 0.1), steps=10)
    alone = distortion_path(vae, x[1:2], toward[1:2], (0.0, 0.1), steps=10)
    both = together[together["index"] == 1]["norm"].to_numpy(), alone["norm"].to_numpy()
    assert both[0] == pytest.approx(both[1], abs=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lambdas": ()}, "at least one of them"),
        ({"lambdas": (-1.0,)}, r"finite and not negative.*\[-1.0\]"),
        ({"lambdas": (float("inf"),)}, "finite and not negative"),
        ({"steps": 0}, "steps=0"),
        ({"divergence": "l2"}, "divergence must be one of"),
        ({"toward": column(1.0, 0.5)}, r"toward must have the shape of x, \[1, 1\], got \[2, 1\]"),
        ({"toward": column(1.5)}, r"toward must be in \[0.0, 1.0\]"),
        ({"x": column(-0.5)}, r"x must be in \[0.0, 1.0\]"),
        ({"toward": column(0.0)}, "example 0 and its target have the same input"),
        ({"low": 1.0}, "low < high"),
    ],
)
def test_bad_input_is_one_clear_error(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"vae": identity_vae(), "x": column(0.0), "toward": column(1.0), **change}
    with pytest.raises(ValueError, match=message):
        distortion_path(**arguments)


def test_a_collapsed_posterior_has_no_curve() -> None:
    vae = identity_vae()
    with torch.no_grad():
        vae.encoder.weight.zero_()
    with pytest.raises(ValueError, match="example 0 and its target have the same latent"):
        distortion_path(vae, column(0.0), column(1.0))


def test_another_distortion_is_an_error() -> None:
    with pytest.raises(ValueError, match='"output" or "latent", got \'input\''):
        auddc(pd.DataFrame({"index": []}), "input")
