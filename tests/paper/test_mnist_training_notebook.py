"""The digit models of notebook 2, and the sizes and the noise that all experiments on them share."""

from dataclasses import replace

import pytest
import torch
from tiny import NAMES

from paperlib import VAE
from paperlib.certificates.evaluation import evaluation_noise
from paperlib.data.datasets import Dataset
from paperlib.paper.mnist_training import EPS, EPS_GRID, SIZES, digit_models, file_name, models_at_radii, models_config


def test_the_three_models_differ_only_in_how_they_are_trained() -> None:
    configs = digit_models("mnist", "paper")
    assert list(configs) == NAMES
    assert [(c.eps, c.kappa) for c in configs.values()] == [(0.0, 1.0), (EPS, 0.0), (EPS, 0.5)]
    assert len({replace(c, eps=EPS, kappa=0.5, steps=1) for c in configs.values()}) == 1


def test_the_full_size_is_the_one_that_is_promised() -> None:
    size = SIZES["paper"]
    assert (size.certified, size.attacked, size.attack_steps) == (10_000, 1_000, 40) and size.draws >= 8
    assert EPS == 0.1 and EPS_GRID == (0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2)


def test_file_names_are_distinct_and_plain() -> None:
    names = [file_name(name) for name in NAMES]
    assert names == ["02_vae", "02_provae_kappa_0", "02_provae_kappa_0.5"]


def test_every_model_meets_every_radius_on_the_first_images_with_the_noise_of_all_results(
    models: dict[str, VAE], test: Dataset
) -> None:
    every = models_at_radii(models, test, 5, [0.1, 0.0])
    assert [(one.name, one.ball) for one in every] == [(n, test.ball(eps)) for n in NAMES for eps in (0.1, 0.0)]
    assert all(one.vae is models[one.name] and torch.equal(one.x, test.x[:5]) for one in every)
    assert torch.equal(every[0].noise(2), evaluation_noise(5, 20, 2)) and every[0].noise().shape == (1, 5, 20)
    assert models_config("mnist5k", "smoke")["noise_seed"] == 1


@pytest.mark.parametrize(("images", "draws"), [(1, 1), (3, 2), (10, 5)])
def test_noise_does_not_depend_on_how_much_of_it_is_asked_for(images: int, draws: int) -> None:
    whole = evaluation_noise(20, 4, 6)
    assert torch.equal(evaluation_noise(images, 4, draws), whole[:draws, :images])
    assert whole.shape == (6, 20, 4) and len({tuple(row) for draw in whole.tolist() for row in draw}) == 120


def test_noise_is_standard_normal_and_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    noise = evaluation_noise(10_000, 4, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert noise.mean().abs() < 0.02 and (noise.std() - 1).abs() < 0.02
