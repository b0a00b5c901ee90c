"""Boxes, points of balls and values of the ELBO that share no code with what paperlib computes, and the audit of both.

Everything but the last section is float64. `ROUNDING` is the one allowance: sums of up to some hundred terms taken in
another order than the bound takes them differ by about 1e-15 of their size, and 1e-12 leaves room for cancellation.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli as BernoulliDensity
from torch.distributions import ContinuousBernoulli as ContinuousBernoulliDensity
from torch.distributions import Normal, kl_divergence
from torch.distributions import Poisson as PoissonDensity

from paperlib import (
    IBP,
    VAE,
    Bernoulli,
    ContinuousBernoulli,
    Crown,
    DiscretizedLogistic,
    Gaussian,
    Interval,
    LinfBall,
    Poisson,
    certificate,
    conv_vae,
    elbo,
    elbo_bounds,
    mlp_vae,
)
from paperlib.certificates.backward import RelaxedVAE
from paperlib.certificates.intervals import IntervalBounds
from paperlib.certificates.method import Method
from paperlib.certificates.refinement import refine
from paperlib.models.likelihood import Likelihood

ROUNDING = 1e-12
LIKELIHOODS: dict[str, Callable[[], Likelihood]] = {
    "bernoulli": Bernoulli,
    "gaussian": partial(Gaussian, scale=0.5),
    "learned": partial(Gaussian, scale=2.0, learned=True),
}
# tested less often through whole networks, as all that is not their own is the same
MORE_LIKELIHOODS: dict[str, Callable[[], Likelihood]] = {
    "continuous-bernoulli": ContinuousBernoulli,
    "poisson": Poisson,
    "discretized-logistic": partial(DiscretizedLogistic, scale=0.1),
}
TARGETS = ["perturbed", "clean"]


def random_box(*shape: int) -> Interval:
    """Ends of both signs around 0; one coordinate in eight has radius 0."""
    center = torch.randn(shape, dtype=torch.float64)
    radius = torch.rand(shape, dtype=torch.float64) * (torch.rand(shape) > 1 / 8)
    return Interval(center - radius, center + radius)


def points_of(lower: Tensor, upper: Tensor, count: int = 16) -> Tensor:
    """Both ends, the centre, corners (all of them, if a row has at most 2^6) and uniform points: [points, *shape]."""
    size = lower[0].numel() if lower.ndim > 1 else lower.numel()
    if size <= 6:
        corners = torch.tensor(list(product([0.0, 1.0], repeat=size))).view(
            -1, *[1] * (lower.ndim > 1), *lower.shape[1:]
        )
        corners = corners.expand(-1, *lower.shape) if lower.ndim > 1 else corners.view(-1, *lower.shape)
    else:
        corners = torch.randint(0, 2, (count, *lower.shape))
    place = torch.cat([corners.double(), torch.rand(count, *lower.shape, dtype=torch.float64)])
    inside = torch.where(place == 1, upper, lower + (upper - lower) * place)  # a corner is the end itself, bit for bit
    return torch.cat([torch.stack([lower, upper, (lower + upper) / 2]), inside.clamp(lower, upper)])


def assert_encloses(box: Interval, values: Tensor, rounding: float = ROUNDING) -> None:
    """Elementwise, for values [points, *shape of the box]; `rounding` is relative to the larger end, or to 1."""
    slack = rounding * torch.maximum(box.lower.abs(), box.upper.abs()).clamp(min=1)
    assert (box.lower <= box.upper).all(), "the ends of the bound are swapped, or NaN"
    assert (box.lower - slack <= values).all(), f"below the lower end by {(box.lower - values).max():.3g}"
    assert (values <= box.upper + slack).all(), f"above the upper end by {(values - box.upper).max():.3g}"


def reference_elbo(vae: VAE, x: Tensor, noise: Tensor, target: Tensor) -> Tensor:
    """log p(target | z) - KL by torch.distributions from the plain encoder and decoder, [batch], in nats."""
    raw = vae.encoder(x)
    posterior = Normal(raw[:, : vae.latent_dim], raw[:, vae.latent_dim :].exp().sqrt())
    kl = kl_divergence(posterior, Normal(torch.zeros_like(noise), torch.ones_like(noise)))
    output = vae.decoder(posterior.mean + posterior.stddev * noise)
    return reference_terms(vae.likelihood, output, target).flatten(1).sum(1) - kl.sum(1)


def reference_terms(likelihood: Likelihood, output: Tensor, target: Tensor) -> Tensor:
    """log p(target | output) of each element, by torch.distributions or by the definition."""
    if isinstance(likelihood, Gaussian):
        return Normal(output, likelihood.log_scale.exp()).log_prob(target)
    if isinstance(likelihood, ContinuousBernoulli):
        return ContinuousBernoulliDensity(logits=output, lims=(0.496, 0.504), validate_args=False).log_prob(target)
    if isinstance(likelihood, Poisson):
        return PoissonDensity(output.exp(), validate_args=False).log_prob(target)  # counts between whole ones
    if isinstance(likelihood, DiscretizedLogistic):
        w, scale, inf = likelihood.half_bin.item(), likelihood.scale.item(), torch.inf
        low = torch.where(target < w, -inf, (target - w - output) / scale)
        high = torch.where(1 - target < w, inf, (target + w - output) / scale)
        # mirrored where both probabilities are close to 1, and their difference would have no digits
        mirrored = low + high > 0
        low, high = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
        return (torch.sigmoid(high) - torch.sigmoid(low)).log()
    return BernoulliDensity(logits=output, validate_args=False).log_prob(target)  # grey values are outside its support


@torch.no_grad()
def audit(vae: VAE, x: Tensor, eps: float, noise: Tensor, target: str, methods: Sequence[Method] = (IBP(),)) -> None:
    """Fails unless `elbo` is the reference and `elbo_bounds` encloses it on [0, 1], and both close exactly at eps 0.

    Each of the methods must be no looser than the one before it, and the first no looser than intervals. The boxes over
    which `Crown` relaxes the layers must hold the values of every layer.
    """
    clean = reference_elbo(vae, x, noise, x)
    torch.testing.assert_close(elbo(vae, x, noise), clean, rtol=ROUNDING, atol=ROUNDING)

    points = hard_points(vae, x, eps, noise, target)
    values = values_at(vae, points, x, noise, target)
    looser = elbo_bounds(vae, x, LinfBall(eps), noise, target=target)
    for method in methods:
        bounds = elbo_bounds(vae, x, LinfBall(eps), noise, method, target)
        assert_encloses(bounds, values)
        assert (bounds.lower >= looser.lower).all() and (bounds.upper <= looser.upper).all(), "looser than before"
        alone = certificate(vae, x, LinfBall(eps), noise, method, target)
        assert torch.equal(alone, bounds.lower), "the certificate is not the lower end"
        looser = bounds
    if isinstance(methods[-1], Crown):
        audit_refined_boxes(vae, x, eps, noise, points)

    closed = elbo_bounds(vae, x, LinfBall(0.0), noise, methods[-1], target)
    assert torch.equal(closed.lower, closed.upper), "the bounds do not close at eps 0"
    assert torch.equal(closed.lower, elbo(vae, x, noise)), "the bounds at eps 0 are not the ELBO"


def values_at(vae: VAE, points: Tensor, x: Tensor, noise: Tensor, target: str) -> Tensor:
    """`reference_elbo` of points [points, *shape of x] that explain themselves or x: [points, batch]."""
    goal = points if target == "perturbed" else x.expand_as(points)
    values = reference_elbo(vae, points.flatten(0, 1), noise.repeat(len(points), 1), goal.flatten(0, 1))
    return values.view(points.shape[:2])


def hard_points(vae: VAE, x: Tensor, eps: float, noise: Tensor, target: str, turns: int = 3) -> Tensor:
    """`points_of` the ball on [0, 1], and the corners to which the gradient of the ELBO points, both up and down."""
    lower, upper = torch.maximum(x - eps, torch.zeros_like(x)), torch.minimum(x + eps, torch.ones_like(x))
    points = [*points_of(lower, upper)]
    for up in (True, False):
        at = x
        for _ in range(turns):
            with torch.enable_grad():
                at = at.detach().requires_grad_()
                value = reference_elbo(vae, at, noise, at if target == "perturbed" else x)
                (slope,) = torch.autograd.grad(value.sum(), at)
            at = torch.where((slope > 0) == up, upper, lower)
            points.append(at)
    return torch.stack(points)


def audit_refined_boxes(vae: VAE, x: Tensor, eps: float, noise: Tensor, points: Tensor) -> None:
    """Fails unless each box of `refine` holds its layer's input at all points, and lies in its interval box."""
    ball = LinfBall(eps).box(x)
    interval = IntervalBounds.of(vae, ball, noise, ball)
    refined = refine(RelaxedVAE.of(vae, interval, noise))
    *encoder, posterior = layer_values(vae.encoder, points)
    mean, log_var = posterior.chunk(2, -1)
    values = [*encoder, mean, log_var, *layer_values(vae.decoder, mean + log_var.exp().sqrt() * noise)]
    encoder_boxes, decoder_boxes = ([layer.box for layer in half] for half in (refined.encoder, refined.decoder))
    tighter = refined.bounds
    refined_boxes = [*encoder_boxes, tighter.mean, tighter.log_var, *decoder_boxes, tighter.output]
    interval_boxes = [*interval.encoder[:-1], interval.mean, interval.log_var, *interval.decoder]
    for box, inside, outer in zip(refined_boxes, values, interval_boxes, strict=True):
        assert_encloses(outer, torch.stack([*box]))
        crossing = box.lower - box.upper  # both ends are rounded on their own, so a box of width 0 may cross by that
        assert (crossing <= ROUNDING * (1 + box.lower.abs())).all(), f"the ends cross by {crossing.max():.3g}"
        assert_encloses(Interval(torch.minimum(*box), torch.maximum(*box)), inside)


def layer_values(module: nn.Module, points: Tensor) -> list[Tensor]:
    """The points [points, batch, *shape], then what each layer of a possibly nested nn.Sequential makes of them."""
    values = [points]
    for child in module if isinstance(module, nn.Sequential) else [module]:
        if isinstance(child, nn.Sequential):
            values += layer_values(child, values[-1])[1:]
        else:
            values.append(child(values[-1].flatten(0, 1)).unflatten(0, points.shape[:2]))
    return values


def audit_case(name: str, likelihood: str = "bernoulli", batch: int = 3) -> tuple[VAE, Tensor, Tensor]:
    """A seeded network in float64 with inputs and noise: `CASES` names them.

    Interval bounds of a random network are so loose that most bugs hide in the slack, thus some are built to be tight:
    each of "chain", "spread" and "flat" reaches one bound of the certificate at a corner. "bend" is the same for linear
    relaxations of ReLU, and "smooth" has the other activations.
    """
    torch.manual_seed(1)
    vae = CASES[name]((LIKELIHOODS | MORE_LIKELIHOODS)[likelihood]()).double().eval()
    shape = {"conv": (1, 4, 4), "chain": (1,), "bend": (1,)}.get(name, (3,))
    x = torch.rand(batch, *shape, dtype=torch.float64).round(decimals=1)  # some pixels near or on the edge of [0, 1]
    x[0], x[-1] = 0.0, 1.0
    noise = torch.randn(batch, vae.latent_dim, dtype=torch.float64)
    return vae, x, noise


def _affine(rows: list[list[float]], bias: list[float]) -> nn.Linear:
    layer = nn.Linear(len(rows[0]), len(rows))
    layer.weight.data, layer.bias.data = torch.tensor(rows), torch.tensor(bias)
    return layer


def _chain(likelihood: Likelihood) -> VAE:
    """One pixel and one latent: mean = 3x - 1, log_var = -20, output = 1 - 2z, so the KL and the fit are tight."""
    return VAE(_affine([[3.0], [0.0]], [-1.0, -20.0]), _affine([[-2.0]], [1.0]), likelihood, 1)


def _spread(likelihood: Likelihood) -> VAE:
    """The log-variances alone move, from -2 to 2 with the pixels, and the decoder magnifies z: a tight latent box."""
    encoder = _affine([[0.0] * 3] * 3 + [[4.0, 0, 0], [0, 4.0, 0], [0, 0, 4.0]], [0.0] * 3 + [-2.0] * 3)
    return VAE(encoder, _affine([[9.0, 0, 0], [0, 9.0, 0], [0, 0, 9.0]], [0.5, 0.5, 0.5]), likelihood, 3)


def _flat(likelihood: Likelihood) -> VAE:
    """The decoder ignores z and says 5, -5, 0: only the target's box matters."""
    return VAE(_affine([[0.0] * 3] * 2, [0.0, 0.0]), _affine([[0.0]] * 3, [5.0, -5.0, 0.0]), likelihood, 1)


def _bend(likelihood: Likelihood) -> VAE:
    """mean = 2 relu(x - 1/2) - 1/2, log_var = x - 1, output = 2 relu(z) - 1, where each relu's input has both signs."""
    encoder = nn.Sequential(_affine([[1.0], [1.0]], [-0.5, 1.0]), nn.ReLU(), _affine([[2.0, 0], [0, 1]], [-0.5, -2.0]))
    decoder = nn.Sequential(_affine([[1.0]], [0.0]), nn.ReLU(), _affine([[2.0]], [-1.0]))
    return VAE(encoder, decoder, likelihood, 1)


def _smooth(likelihood: Likelihood) -> VAE:
    encoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.ELU(), nn.Linear(4, 4))
    decoder = nn.Sequential(nn.Linear(2, 4), nn.Softplus(), nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 3))
    return VAE(encoder, decoder, likelihood, 2)


CASES = {
    "mlp": lambda likelihood: mlp_vae((3,), (5,), 2, likelihood),
    "deep": lambda likelihood: mlp_vae((3,), (6, 4), 2, likelihood),
    "conv": lambda likelihood: conv_vae((1, 4, 4), (2, 3), 2, likelihood),
    "chain": _chain,
    "spread": _spread,
    "flat": _flat,
    "bend": _bend,
    "smooth": _smooth,
}


def grid(lower: float, upper: float, count: int = 101) -> Tensor:
    """Evenly spaced from end to end, both ends exact."""
    points = torch.linspace(lower, upper, count, dtype=torch.float64)
    points[0], points[-1] = lower, upper
    return points.clamp(lower, upper)


# Floating point


def orders(terms: Tensor) -> dict[str, Tensor]:
    """One float32 sum of the terms [count, outputs] taken in many ways: [outputs] each."""
    by_size = terms.gather(0, terms.abs().argsort(0, descending=True))
    shuffled = terms[torch.randperm(len(terms))]
    ways = {"one by one": terms, "large first": by_size, "small first": by_size.flip(0), "shuffled": shuffled}
    ways["signs apart"] = terms.sort(0).values
    sums = {name: one_by_one(way) for name, way in ways.items()}
    while len(shuffled) > 1:
        half = len(shuffled) // 2
        shuffled = torch.cat([shuffled[:half] + shuffled[half : 2 * half], shuffled[2 * half :]])
    return sums | {"pairwise": shuffled[0]}


def one_by_one(terms: Tensor) -> Tensor:
    total = torch.zeros_like(terms[0])
    for term in terms:
        total = total + term
    return total


def stagnating() -> Tensor:
    """One large summand and many below half its last place, all of which a sum one by one loses, [1, 400]: the error of
    that sum nearly attains gamma_n."""
    terms = torch.full((1, 400), 0.99 * 2.0**-24)
    terms[0, 0] = 1.001
    return terms


def assert_nearly_attained(terms: Tensor, truth: Tensor, bound: Tensor) -> None:
    """The error of the sum one by one is within the bound, and more than 0.8 of it."""
    error = (one_by_one(terms).double() - truth).abs()
    assert (error <= bound).all() and (error > 0.8 * bound).all()


def point_box(center: Tensor) -> Interval:
    """The box of one point, in float64."""
    return Interval(center.double(), center.double())


@contextmanager
def set_to(backend: object, precision: str) -> Iterator[None]:
    """While the block runs, float32 products of one of torch's backends may be taken in this precision."""
    before = backend.fp32_precision
    backend.fp32_precision = precision
    try:
        yield
    finally:
        backend.fp32_precision = before
