"""Radii of analysis by synthesis against closed forms, dense grids of latents, and attacks that share no code."""

import math

import pytest
import torch
from oracles import points_of
from torch import Tensor, nn

from paperlib import Bernoulli, Gaussian, Interval, mlp_vae
from paperlib.detection import latent_search
from paperlib.detection.latent_search import nearest_latents
from paperlib.detection.manifold import ManifoldClassifier, mean_decoder
from paperlib.detection.manifold_attack import nearest_other_class
from paperlib.detection.rival import Rival
from paperlib.models.likelihood import Likelihood

PIXELS, WEIGHT, TOL = 6, 0.3, 1e-3
SIDE = torch.linspace(-6, 6, 241, dtype=torch.float64)  # beyond |z| = 6 the prior alone is above all that is compared
GRID = torch.cartesian_prod(SIDE, SIDE)


@pytest.fixture(autouse=True)
def short_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_search, "SAMPLES", 500)


def classifier(seed: int = 0) -> ManifoldClassifier:
    torch.manual_seed(seed)
    vaes = [mlp_vae((PIXELS,), (6,), 2) for _ in range(3)]
    for vae in vaes:
        for layer in (vae.decoder[0], vae.decoder[2]):
            layer.weight.data *= 3
            layer.bias.data *= 3
    return ManifoldClassifier.of(vaes, WEIGHT)


def linear_classifier() -> ManifoldClassifier:
    torch.manual_seed(3)
    layers = (nn.Sequential(nn.Linear(2, PIXELS)).double().requires_grad_(False) for _ in range(3))
    return ManifoldClassifier(tuple(layers), 2, WEIGHT)


def inputs(count: int = 6) -> Tensor:
    return torch.rand(count, PIXELS, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def grid_images(model: ManifoldClassifier) -> Tensor:
    """[classes, points, pixels]"""
    return torch.stack([decoder(GRID) for decoder in model.decoders])


def grid_scores(images: Tensor, x: Tensor) -> Tensor:
    """||x - G_c(z)||^2 + K(z) on the grid, [classes, batch, points]; the least is J."""
    terms = images.square().sum(2) + WEIGHT * GRID.square().sum(1)
    return x.square().sum(1)[:, None] - 2 * x @ images.mT + terms[:, None]


def published(distance: float, d_y: float, score: float) -> float:
    return max(0.0, (distance**2 - score) / (2 * (distance + d_y)))


# ---- the bounds in a box


@pytest.mark.parametrize("width", [3.0, 0.3, 0.0])
def test_the_bounds_in_a_box_are_below_the_values_at_its_points(width: float) -> None:
    model, x = classifier(), inputs(8)
    own = model.decoders[0](torch.randn(8, 2).double() / 2)
    rival = Rival(model.decoders[1], WEIGHT, x, own, (x - own).square().sum(1) + 0.01)
    center = torch.randn(8, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    box = Interval(center - width, center + width)
    example = torch.arange(8)
    joint, distance = rival.joint_below(box, example), rival.distance_below(box, example)
    for z in points_of(*box, count=100):
        assert (joint <= rival.joint(z, example) + 1e-12).all()
        assert (distance <= rival.distance(z, example) + 1e-12).all()
    assert rival.joint(center, example).max() > 0
    if not width:
        torch.testing.assert_close(joint, rival.joint(center, example))
        torch.testing.assert_close(distance, rival.distance(center, example))


def test_outside_the_search_box_no_latent_is_nearer_than_the_radius() -> None:
    model, x = classifier(), inputs()
    own = model.decoders[0](torch.zeros(6, 2).double())
    rival = Rival(model.decoders[1], WEIGHT, x, own, (x - own).square().sum(1))
    radius = torch.full((6,), 0.4, dtype=torch.float64)
    box = rival.box(radius, 2)
    for row in range(6):
        outside = GRID[(GRID.abs() > box.upper[row]).any(1)]
        part = rival[torch.tensor([row])]
        assert len(outside) > 1_000 and part.joint(outside, torch.zeros(len(outside)).long()).min() >= radius[row]


# ---- oracles


def test_linear_decoders_have_the_radii_of_least_squares() -> None:
    model, x = linear_classifier(), inputs()
    rows = model.certify(x, TOL, torch.Generator().manual_seed(0))
    scores, distances = [], []
    for (layer,) in model.decoders:
        rest = x - layer.bias
        nearest = torch.linalg.lstsq(layer.weight, rest.T).solution.T
        distances.append((rest - nearest @ layer.weight.T).norm(dim=1))
        ridge = torch.linalg.solve(layer.weight.T @ layer.weight + WEIGHT * torch.eye(2), layer.weight.T @ rest.T).T
        scores.append((rest - ridge @ layer.weight.T).square().sum(1) + WEIGHT * ridge.square().sum(1))
    score, label = torch.stack(scores).min(0)
    assert rows["label"].tolist() == label.tolist()
    assert rows["score"].to_numpy() == pytest.approx(score.numpy(), abs=1e-4)
    for row, certified in rows.iterrows():
        d_c = min(float(distances[c][row]) for c in range(3) if c != label[row])
        assert published(d_c, 0, certified["score"]) >= 0
        # d_y of the latent that the search met is within 1e-2 of that of the ridge's
        layer = model.decoders[int(label[row])][0]
        rest = x[row] - layer.bias
        ridge = torch.linalg.solve(layer.weight.T @ layer.weight + WEIGHT * torch.eye(2), layer.weight.T @ rest)
        exact = published(d_c, float((rest - layer.weight @ ridge).norm()), float(score[row]))
        assert certified["published"] == pytest.approx(exact, abs=5e-3)
        assert certified["gap"] <= TOL + 1e-9


@pytest.mark.parametrize("seed", [0, 1])
def test_the_radii_are_those_of_a_dense_grid(seed: int) -> None:
    model, x = classifier(seed), inputs()
    rows = model.certify(x, TOL, torch.Generator().manual_seed(0))
    images = grid_images(model)
    scores = grid_scores(images, x)
    exact = scores.amin(2)
    assert rows["label"].tolist() == exact.argmin(0).tolist()
    z = model.search(x, torch.Generator().manual_seed(0))
    for row, certified in rows.iterrows():
        label = int(certified["label"])
        own = model.decoders[label](z[label, row, None])
        assert certified["score"] == pytest.approx(exact[label, row].item(), abs=1e-2)
        d_y = (x[row] - own[0]).norm().item()
        # what is farther from 0 has a prior that keeps the label, however near its image is
        reach = math.sqrt(((d_y + certified["searched"]) ** 2 + certified["score"] - d_y**2) / WEIGHT)
        inside, around = ((GRID.abs() <= reach + more).all(1) for more in (0, SIDE[1] - SIDE[0]))
        least, nearest, nearest_around = math.inf, math.inf, math.inf
        for rival in set(range(3)) - {label}:
            apart = torch.cdist(own, images[rival])[0]
            least = min(least, ((scores[rival, row] - certified["score"]) / (2 * apart)).min().item())
            distance = torch.cdist(x[row, None], images[rival])[0]
            nearest = min(nearest, distance[inside].min().item())
            nearest_around = min(nearest_around, distance[around].min().item())
        formula, below = (published(d_c, d_y, certified["score"]) for d_c in (nearest, nearest_around))
        below = min(below, certified["searched"])  # a search may have met a nearer image outside
        # the grid is above the minimum, by its mesh
        assert max(least, 0) - 2e-2 <= certified["radius"] <= max(least, 0) + 1e-9
        assert below - 2e-2 <= certified["published"] <= formula + 1e-9
        assert certified["published"] <= certified["radius"] + TOL
    assert (rows["published"] > 0).any()


def test_no_attack_within_the_radius_changes_the_class_by_a_dense_grid() -> None:
    model, x = classifier(), inputs()
    rows = model.certify(x, TOL, torch.Generator().manual_seed(0))
    radius, label = (torch.from_numpy(rows[name].to_numpy(copy=True)) for name in ("radius", "label"))

    images, rows_of_x = grid_images(model), torch.arange(len(x))

    def attacked(reach: Tensor, rival: int) -> Tensor:
        """Whether projected gradient steps towards the images of a rival change the class."""
        point, changed = x, torch.zeros(len(x), dtype=torch.bool)
        for _ in range(12):
            scores, best = grid_scores(images, point).min(2)
            changed |= scores.argmin(0) != label
            # minus the gradient of J_c - J_y, by the envelope theorem
            step = images[rival, best[rival]] - images[label, best[label, rows_of_x]]
            point = point + step / step.norm(dim=1, keepdim=True).clamp(min=1e-9) * reach.unsqueeze(1) / 3
            move = point - x
            point = x + move * (reach / move.norm(dim=1).clamp(min=1e-9)).clamp(max=1).unsqueeze(1)
        return changed

    robust = radius > 0.05
    assert robust.sum() >= 3
    # the grid's mesh makes scores larger by up to 1e-2
    within = torch.stack([attacked((radius - 0.02).clamp(min=0), rival) for rival in range(3)])
    assert not within[:, robust].any()
    beyond = torch.stack([attacked(1.3 * radius + 0.02, rival) for rival in range(3)]).any(0)
    assert beyond[robust].any()  # the attack is one


def test_the_nearest_input_of_another_class_is_outside_of_the_radius() -> None:
    model, x = classifier(), inputs()
    rows = model.certify(x, TOL, torch.Generator().manual_seed(0))
    point, distance = nearest_other_class(model, x, 4, torch.Generator().manual_seed(0))
    met = distance.isfinite()
    assert met.any() and (distance >= torch.from_numpy(rows["radius"].to_numpy(copy=True))).all()
    torch.testing.assert_close((point - x).norm(dim=1)[met], distance[met])
    scores, row = grid_scores(grid_images(model), point).amin(2), torch.arange(len(x))
    label = torch.from_numpy(rows["label"].to_numpy(copy=True))
    lead = scores[label, row] - scores.amin(0)  # 0 if the label has the least score; the grid's mesh may take 0.02
    assert (lead[met] > -0.02).all() and (lead > 0).sum() >= 3
    assert torch.equal(point[~met], x[~met])


@pytest.mark.parametrize(("third", "expected"), [([0.0, 4.0], [-0.42, 0.56]), ([0.0, 2.0], [0.0, 0.0])])
def test_an_attack_does_not_step_to_a_plane_behind_the_input(
    third: list[float], expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second round the latents of class 1 already lead at x; in the second case those of class 2 do, too."""
    found = iter([[[0.1, 0.0], [1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [1.0, 0.0], third], [[0.0, 0.0]] * 3])
    points = []

    def search(self: ManifoldClassifier, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        points.append(x)
        return torch.tensor(next(found), dtype=torch.float64)[:, None]

    monkeypatch.setattr(ManifoldClassifier, "search", search)
    images = ManifoldClassifier((nn.Identity(), nn.Identity(), nn.Identity()), 2, 1e-9)
    nearest_other_class(images, torch.zeros(1, 2), rounds=2)
    assert points[2][0].tolist() == pytest.approx([1.02 * step for step in expected], abs=1e-6)


class Spike(nn.Sequential):
    """One latent: an image of zeros, but of ones within a hundredth of z = 4, which samples and gradients miss."""

    def __init__(self) -> None:
        rise, out = nn.Linear(1, 4), nn.Linear(4, PIXELS)
        rise.weight.data = torch.full((4, 1), 1000.0)
        rise.bias.data = -1000 * torch.tensor([3.995, 3.996, 4.004, 4.005])
        out.weight.data = torch.tensor([1.0, -1.0, -1.0, 1.0]).expand(PIXELS, 4).clone()
        out.bias.data.zero_()
        super().__init__(rise, nn.ReLU(), out)


def test_a_radius_by_search_is_wrong_where_the_search_misses_the_nearest_image() -> None:
    near = nn.Sequential(nn.Linear(1, PIXELS))
    near[0].weight.data.zero_()
    near[0].bias.data.fill_(1.3)  # always the same image
    decoders = tuple(network.double().requires_grad_(False) for network in (near, Spike()))
    model, x = ManifoldClassifier(decoders, 1, 0.001), torch.full((1, PIXELS), 1.3, dtype=torch.float64)
    missed = nearest_latents(decoders[1], x, 1, 0.0, torch.Generator().manual_seed(7))
    assert decoders[1](missed).abs().max() < 1e-3
    row = model.certify(x, TOL, torch.Generator().manual_seed(7)).iloc[0]
    # two thirds of the way to the spike's image of ones the class has changed
    point = x - 0.2
    scores = model.scores(point, torch.tensor([[[0.0]], [[4.0]]], dtype=torch.float64))
    assert row["label"] == 0 and scores[1, 0] < scores[0, 0]
    reach = (point - x).norm().item()
    assert row["searched"] > reach > row["radius"] >= row["published"] > 0
    assert row["gap"] > 0.5


# ---- models and errors


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.5)], ids=["bernoulli", "gaussian"])
def test_mean_images_are_those_of_the_likelihood(likelihood: Likelihood) -> None:
    vae = mlp_vae((2, 3), (4,), 2, likelihood)
    z = torch.randn(5, 2).double()
    mean = likelihood.mean(vae.in_float64().decoder(z)).flatten(1)
    torch.testing.assert_close(mean_decoder(vae)(z), mean)


def test_wrong_arguments_are_named() -> None:
    one, other = mlp_vae((4,), (3,), 2), mlp_vae((4,), (3,), 3)
    for vaes, weight, message in [
        ([one], 1.0, "at least two classes, got 1"),
        ([mlp_vae((4,), (3,), 4)] * 2, 1.0, "at most 3 latents, got 4"),
        ([one, other], 1.0, r"as many latents, got \[2, 3\]"),
        ([one, one], 0.0, "weight must be positive and finite, got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            ManifoldClassifier.of(vaes, weight)
    model = ManifoldClassifier.of([one, one], 1.0)
    with pytest.raises(ValueError, match="tol must be positive, got 0"):
        model.certify(torch.zeros(1, 4), 0.0)
    with pytest.raises(ValueError, match=r"images must be \[batch, 4\]"):
        model.certify(torch.zeros(1, 5))
