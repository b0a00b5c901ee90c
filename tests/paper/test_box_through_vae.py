"""One image's box on its way through a VAE: nothing in the ball leaves what is drawn, and the figure draws it."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from paperlib import VAE, certificate, elbo
from paperlib.certificates.evaluation import evaluation_noise
from paperlib.data.datasets import Dataset
from paperlib.models import gaussian
from paperlib.paper import box_through_vae as boxes
from paperlib.paper.mnist_training import EPS
from paperlib.paper.plots.box_through_vae import box_through_vae as draw


@pytest.fixture
def arrays(models: dict[str, VAE], test: Dataset) -> dict[str, torch.Tensor]:
    return boxes.box_through_vae(models[boxes.MODEL], test)


def test_the_boxes_hold_the_image_and_all_others_of_the_ball(
    arrays: dict[str, torch.Tensor], models: dict[str, VAE], test: Dataset
) -> None:
    vae, x, ball = models[boxes.MODEL].in_float64(), test.x[: boxes.IMAGE + 1].double(), test.ball(EPS)
    x, noise = x[boxes.IMAGE :], evaluation_noise(boxes.IMAGE + 1, vae.latent_dim)[0, boxes.IMAGE :].double()
    assert torch.equal(arrays["input"], x[0])
    for seed in range(20):
        point = ball.sample(x, torch.Generator().manual_seed(seed)) if seed else x
        with torch.no_grad():
            latent = gaussian.reparametrize(*vae.encode(point), noise)
            ink = vae.likelihood.mean(vae.decoder(latent))
            assert arrays["certified"] <= elbo(vae, point, noise)[0]
        for name, value in (("input", point), ("latent", latent), ("output", ink)):
            assert (arrays[f"{name}_lower"] <= value[0] + 1e-12).all() and (
                value[0] <= arrays[f"{name}_upper"] + 1e-12
            ).all()
            assert seed or torch.allclose(arrays[name], value[0], rtol=0, atol=1e-12)
    with torch.no_grad():
        assert arrays["certified"] == certificate(vae, x, ball, noise)[0] and arrays["clean"] == elbo(vae, x, noise)[0]
    assert arrays["certified"] < arrays["attacked"] < arrays["clean"]


def test_what_the_boxes_depend_on_is_in_their_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    config = boxes.box_config("mnist", "paper")
    assert json.loads(json.dumps(config)) == config and config["eps"] == EPS
    for constant, value in (("MODEL", "VAE"), ("IMAGE", 3), ("EPS", 0.2)):
        with monkeypatch.context() as patch:
            patch.setattr(boxes, constant, value)
            assert boxes.box_config("mnist", "paper") != config


def test_the_figure_shows_inputs_latents_outputs_and_the_three_numbers(arrays: dict[str, torch.Tensor]) -> None:
    figure = draw(arrays, "a caption")
    images = [axis.get_images()[0] for axis in figure.axes if axis.get_images()]
    names = [f"{name}{end}" for name in ("input", "output") for end in ("_upper", "", "_lower")]
    for image, name in zip(images, names, strict=True):
        np.testing.assert_array_equal(np.asarray(image.get_array()), arrays[name].view(28, 28))
        assert image.get_clim() == (0, 1)
    latents, values = (axis for axis in figure.axes if not axis.get_images())
    segments = np.array(latents.collections[0].get_segments())
    np.testing.assert_allclose(segments[:, :, 1].T, [arrays["latent_lower"], arrays["latent_upper"]])
    np.testing.assert_allclose(latents.get_lines()[0].get_ydata(), arrays["latent"])
    levels = [line.get_ydata()[0] for line in values.get_lines()]
    assert levels == [arrays[name].item() for name in ("clean", "attacked", "certified")]
    (certified,) = [text.get_text() for text in values.texts if text.get_text().startswith("certified")]
    assert float(certified.split()[1].replace("−", "-")) <= arrays["certified"].item(), "it is rounded down"
    assert figure.get_supxlabel() == "a caption"
    plt.close(figure)
