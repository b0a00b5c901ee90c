"""The curriculum of robust training as pure functions of the step, so that any step can be reproduced on its own."""

from paperlib.training.config import TrainConfig


def ramp(step: int, config: TrainConfig) -> float:
    """0 until `ramp_start`, then linear to 1 at `ramp_end` (both fractions of `steps`), 1 afterwards."""
    start, end = config.ramp_start * config.steps, config.ramp_end * config.steps
    if step >= end:
        return 1.0
    return 0.0 if step <= start else (step - start) / (end - start)


def eps_at(step: int, config: TrainConfig) -> float:
    """Radius of the ball that this step trains on, in data units; `config.eps` after the ramp."""
    return config.eps * ramp(step, config)


def kappa_at(step: int, config: TrainConfig) -> float:
    """Weight of the clean ELBO; goes from `config.kappa_start` to `config.kappa` along the ramp, by default from 1 down
    (Gowal et al. 2018, section 4).
    """
    return config.kappa_start - (config.kappa_start - config.kappa) * ramp(step, config)


def lr_at(step: int, config: TrainConfig) -> float:
    """Learning rate: constant until the ramp ends, then linear to `lr * lr_final` at the last step."""
    start = config.ramp_end * config.steps
    done = max(0.0, (step - start) / max(1.0, config.steps - start))
    return config.lr * (1.0 - (1.0 - config.lr_final) * min(1.0, done))
