"""The two ready-made networks and what every VAE offers around them."""

import pytest
import torch
from torch import Tensor, nn

from paperlib import (
    VAE,
    Bernoulli,
    Gaussian,
    GaussianHeads,
    LinfBall,
    certify,
    conv_vae,
    elbo,
    elbo_bounds,
    mlp_vae,
    pgd,
    propagate,
)
from paperlib.bounds.rules import UnsupportedLayerError

NETWORKS = {
    "flat": (mlp_vae, {"data_shape": (6,), "hidden": (5, 4), "latent_dim": 3}, (6,)),
    "image mlp": (mlp_vae, {"data_shape": (1, 2, 3), "hidden": (5,), "latent_dim": 2}, (1, 2, 3)),
    "no hidden layer": (mlp_vae, {"data_shape": (4,), "hidden": (), "latent_dim": 2}, (4,)),
    "conv": (conv_vae, {"data_shape": (2, 8, 4), "channels": (3, 4), "latent_dim": 3}, (2, 8, 4)),
    "one stage": (conv_vae, {"data_shape": (1, 2, 2), "channels": (2,), "latent_dim": 1}, (1, 2, 2)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.3)], ids=["bernoulli", "gaussian"])
def test_a_network_maps_data_to_latents_and_back_and_can_be_bounded(name: str, likelihood: nn.Module) -> None:
    make, sizes, shape = NETWORKS[name]
    vae, x = make(**sizes, likelihood=likelihood), torch.rand(5, *shape)
    latent = sizes["latent_dim"]
    mean, log_var = vae.encode(x)
    assert mean.shape == log_var.shape == (5, latent)
    assert torch.equal(torch.cat([mean, log_var], dim=1), vae.encoder(x)), "first the means, then the log-variances"
    assert vae.decoder(mean).shape == x.shape
    assert vae.reconstruct(x).shape == x.shape
    assert vae.sample(7).shape == (7, *shape)
    box = LinfBall(0.1).box(x)
    assert propagate(vae.encoder, box).lower.shape == (5, 2 * latent)
    assert elbo_bounds(vae, x, LinfBall(0.1), torch.randn(5, latent)).lower.shape == (5,)
    assert vae.likelihood is likelihood


def test_the_default_network_is_the_one_of_the_experiments() -> None:
    vae = mlp_vae()
    widths = [
        [layer.weight.shape for layer in half if isinstance(layer, nn.Linear)] for half in (vae.encoder, vae.decoder)
    ]
    assert widths == [[(512, 784), (40, 512)], [(512, 20), (784, 512)]]
    assert isinstance(vae.likelihood, Bernoulli)
    assert vae.latent_dim == 20


def test_the_decoder_mirrors_the_hidden_widths() -> None:
    vae = mlp_vae((6,), (5, 4), 3)
    widths = [
        [layer.out_features for layer in half if isinstance(layer, nn.Linear)] for half in (vae.encoder, vae.decoder)
    ]
    assert widths == [[5, 4, 6], [4, 5, 6]]


@pytest.mark.parametrize("shape", [(6,), (1, 2, 3)])
def test_an_encoder_with_clipped_inputs_sees_no_small_change_of_what_is_at_an_end(shape: tuple[int, ...]) -> None:
    vae = mlp_vae(shape, (5,), 2, input_clip=0.1).double()
    ends = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 0.0]).double().reshape(1, *shape)
    at_ends = propagate(vae.encoder, LinfBall(0.1).box(ends))
    assert torch.equal(at_ends.lower, at_ends.upper)
    assert (propagate(vae.encoder, LinfBall(0.11).box(ends)).radius > 0).all(), "a larger change is seen"
    assert (propagate(vae.encoder, LinfBall(0.01).box(ends.clamp(0.2, 0.8))).radius > 0).all(), "and one of grey"
    x = torch.rand(4, *shape).double()
    plain = mlp_vae(shape, (5,), 2).double()
    plain.load_state_dict(dict(zip(plain.state_dict(), vae.state_dict().values(), strict=True)))
    assert torch.equal(vae.encoder(x), plain.encoder(x.clamp(0.1, 0.9)))


@pytest.mark.parametrize("margin", [-0.1, 0.5])
def test_a_clip_that_leaves_nothing_is_refused(margin: float) -> None:
    with pytest.raises(ValueError, match=r"input_clip must be in \[0, 0.5\)"):
        mlp_vae(input_clip=margin)


@pytest.mark.parametrize("shape", [(784,), (1, 28, 30), (1, 6, 8), (28, 28)])
def test_sides_that_cannot_be_halved_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"divisible by 4, got \("):
        conv_vae(shape)


def test_a_reconstruction_is_the_expected_data_at_the_posterior_mean() -> None:
    vae, x = mlp_vae((4,), (5,), 2), torch.rand(3, 4)
    half = vae.encoder(x)[:, :2]
    torch.testing.assert_close(vae.reconstruct(x), torch.sigmoid(vae.decoder(half)))
    assert not vae.reconstruct(x).requires_grad


def test_calling_a_vae_gives_the_reconstruction_with_its_gradient() -> None:
    vae, x = mlp_vae((4,), (5,), 2), torch.rand(3, 4, requires_grad=True)
    assert torch.equal(vae(x), vae.reconstruct(x))
    vae(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


class TwoTensors(nn.Module):
    """An encoder as many write it: shared layers, two heads, two results."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 5), nn.ReLU())
        self.mean, self.log_var = nn.Linear(5, 2), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(x)
        return self.mean(hidden), self.log_var(hidden)


def test_an_encoder_may_return_mean_and_log_variance() -> None:
    """Everything but bounds takes it as it is, and their error says what to do; then all give the same numbers."""
    encoder, decoder = TwoTensors(), nn.Linear(2, 4)
    vae, x, noise, ball = VAE(encoder, decoder, Bernoulli(), 2), torch.rand(3, 4), torch.randn(3, 2), LinfBall(0.1)
    heads = nn.Sequential(encoder.body, GaussianHeads(encoder.mean, encoder.log_var))
    same = VAE(heads, decoder, Bernoulli(), 2)
    assert torch.equal(elbo(vae, x, noise), elbo(same, x, noise)) and torch.equal(vae(x), same(x))
    assert torch.equal(pgd(vae, x, ball, noise), pgd(same, x, ball, noise))
    for bounds in (elbo_bounds, certify):
        with pytest.raises(
            UnsupportedLayerError, match=r"TwoTensors at 'encoder'.*paperlib\.GaussianHeads\(mean, log_var"
        ):
            bounds(vae, x, ball, noise)
    assert (certify(same, x, ball, noise, attack={"steps": 2})["certified"] <= elbo(vae, x, noise).tolist()).all()


@pytest.mark.parametrize("parts", [1, 3])
def test_an_encoder_that_returns_neither_one_tensor_nor_two_is_refused(parts: int) -> None:
    class Parts(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [x] * parts

    with pytest.raises(ValueError, match=rf"mean and log-variance, or both in one tensor; got {parts}"):
        VAE(Parts(), nn.Linear(2, 2), Bernoulli(), 2).encode(torch.rand(3, 2))


@pytest.mark.parametrize(
    ("decoder", "place"),
    [
        (nn.Sequential(nn.Linear(2, 4), nn.Sigmoid()), r"decoder\.1"),
        (nn.Sequential(nn.Linear(2, 4), nn.Sequential(nn.Sigmoid(), nn.Unflatten(1, (2, 2)))), r"decoder\.1\.0"),
        (nn.Sigmoid(), "decoder"),
    ],
)
def test_a_sigmoid_before_a_bernoulli_is_warned_of_by_its_place(decoder: nn.Module, place: str) -> None:
    with pytest.warns(
        UserWarning, match=rf"^{place} is a Sigmoid, but Bernoulli\(\) reads the decoder's output as logits"
    ):
        VAE(nn.Linear(4, 4), decoder, Bernoulli(), 2)
    VAE(nn.Linear(4, 4), decoder, Gaussian(), 2)
    VAE(nn.Linear(4, 4), nn.Sequential(nn.Sigmoid(), nn.Linear(2, 4)), Bernoulli(), 2)


def test_samples_repeat_with_their_generator_and_keep_the_dtype() -> None:
    vae = mlp_vae((4,), (5,), 2).double()
    first, again = (vae.sample(6, torch.Generator().manual_seed(1)) for _ in range(2))
    assert first.dtype == torch.float64
    assert torch.equal(first, again)
    assert not torch.equal(first, vae.sample(6))


def test_a_copy_in_float64_leaves_the_original_as_it_was() -> None:
    vae = VAE(nn.Sequential(nn.Linear(4, 4), nn.Dropout()), nn.Linear(2, 4), Gaussian(0.5, learned=True), 2)
    copy = vae.in_float64()
    assert {tensor.dtype for tensor in copy.state_dict().values()} == {torch.float64}
    assert {tensor.dtype for tensor in vae.state_dict().values()} == {torch.float32}
    assert (vae.training, copy.training) == (True, False)
    with torch.no_grad():
        copy.encoder[0].weight.zero_()
    assert vae.encoder[0].weight.any()
    for name, tensor in copy.decoder.state_dict().items():
        assert torch.equal(tensor, vae.decoder.state_dict()[name].double())


def test_equal_seeds_build_equal_networks() -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(mlp_vae((4,), (5,), 2).parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
