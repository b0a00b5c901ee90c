"""The autoencoder as a score, and the attack that all scores with a gradient share."""

import math

import torch

from paperlib import LinfBall
from paperlib.rivals.autoencoder import Autoencoder

DIRECTION = torch.tensor([[1.0, 2.0, -1.0, 0.5]], dtype=torch.float64)
X = torch.randn(200, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * DIRECTION
OFF = torch.tensor([[2.0, -1.0, 1.0, -0.5]], dtype=torch.float64)
SMALL = {"hidden": (8,), "latent_dim": 1, "steps": 200, "lr": 0.01}


def test_rows_off_the_line_that_it_learned_score_lower() -> None:
    detector = Autoencoder.fit(X, **SMALL)
    assert detector.score(X[:20]).min() > detector.score(X[:20] + OFF).max()
    torch.testing.assert_close(detector.score(X), -((detector.network(X) - X).norm(dim=1) ** 2))
    assert detector.bounds(X, LinfBall(0.1, -math.inf, math.inf)) is None


def test_the_seed_decides_the_network_and_leaves_the_users_chance_alone() -> None:
    torch.manual_seed(5)
    first = Autoencoder.fit(X, **SMALL | {"steps": 2})
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    again, other = (Autoencoder.fit(X, **SMALL | {"steps": 2}, seed=seed) for seed in (0, 1))
    assert torch.equal(first.score(X), again.score(X)) and not torch.equal(first.score(X), other.score(X))


def test_the_attack_moves_the_score_both_ways_inside_the_set() -> None:
    detector, ball = Autoencoder.fit(X, **SMALL), LinfBall(0.1, -math.inf, math.inf)
    generator = torch.Generator().manual_seed(0)
    low, high = (detector.attack(X, ball, 20, generator, maximize=maximize) for maximize in (False, True))
    for point in (low, high):
        assert ((point - X).abs() <= 0.1 + 1e-12).all()
    assert (detector.score(low) <= detector.score(X)).all() and (detector.score(X) <= detector.score(high)).all()
    sampled = torch.stack([detector.score(ball.sample(X, generator)) for _ in range(50)])
    assert detector.score(low).mean() < sampled.amin(0).mean() and detector.score(high).mean() > sampled.amax(0).mean()
