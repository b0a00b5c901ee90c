"""One wording for each quantity that an axis of a figure shows, with its unit."""

from enum import StrEnum


class Axis(StrEnum):
    """The label of an axis, with the unit of the quantity unless it is one of `DIMENSIONLESS`."""

    RADIUS = "radius $\\epsilon$ (pixels in [0, 1])"
    CHANGE = "perturbation (pixels in [0, 1])"
    PIXEL = "target $t$ (pixels in [0, 1])"
    ELBO = "ELBO (nats)"
    CLEAN = "clean ELBO (nats)"
    ATTACKED = "attacked ELBO (nats)"
    CERTIFIED = "certified ELBO (nats)"
    CLEAN_KL = "clean KL (nats)"
    ATTACKED_KL = "attacked KL (nats)"
    GAP = "attacked − certified (nats)"
    OVER_DISTANCE = "bound − exact (pixels²)"
    UNDER_LIKELIHOOD = "exact − bound (nats)"
    GAIN = "gain of (clean + certified) / 2 (nats)"
    LOG_LIKELIHOOD = "log-likelihood (nats)"
    PRODUCT = "$t\\,l$ (nats)"
    SLOPE = "nats per unit of $x$"
    WIDTH = "mean width (units of the layer)"
    MILLISECONDS = "time (ms, float64)"
    SECONDS = "time an image (s, float64)"
    SCORE = "score − threshold (nats)"
    SIGNAL = "signal (units of the beat's deviation)"
    BEAT_RADIUS = "radius $\\epsilon$ (units of the beat's deviation)"
    CERTIFIED_RADIUS = "certified radius (units of the beat's deviation)"

    STEP = "training step"
    PGD_STEPS = "PGD steps"
    ATTACK_STEPS = "attack steps"
    DRAWS = "draws $K$"
    SHARE = "share of images"
    ACCURACY = "accuracy (per cent)"
    BEATS = "share of beats"
    SAMPLE = "sample of the beat"
    AUC = "guaranteed AUC"
    WAY = "share of the way from the clean input"
    LOOSENESS = "box width / width reached"
    MULTIPLES = "time / time of the plain VAE's step"
    MOVED = "(x' − x) / ε"
    COORDINATE = "latent coordinate"
    LATENT = "latent $z$"
    LATENT_RADIUS = "radius of the box of latents"
    FIRST = "$x_1$"
    SECOND = "$x_2$"
    BEFORE_RELU = "$v$ (before ReLU)"
    RELU = "ReLU$(v)$"
    LOG_VARIANCE = "log-variance $v$"
    DEVIATION = "$e^{v/2}$"
    LOGIT = "logit $l$"
    DEPTH = "hidden layers of each half"
    UNITS = "units of a hidden layer"
    DIAGONAL = "logit $l$ ($t$ grows with it)"


# counts, shares, ratios, and the coordinates of latents, logits and the toy plane
DIMENSIONLESS = frozenset(
    {
        *(
            Axis.STEP,
            Axis.PGD_STEPS,
            Axis.ATTACK_STEPS,
            Axis.DRAWS,
            Axis.SHARE,
            Axis.WAY,
            Axis.LOOSENESS,
            Axis.MULTIPLES,
            Axis.MOVED,
        ),
        *(Axis.BEATS, Axis.SAMPLE, Axis.AUC),
        *(Axis.COORDINATE, Axis.LATENT, Axis.LATENT_RADIUS, Axis.FIRST, Axis.SECOND),
        *(Axis.BEFORE_RELU, Axis.RELU, Axis.LOG_VARIANCE, Axis.DEVIATION, Axis.LOGIT, Axis.DIAGONAL),
        *(Axis.DEPTH, Axis.UNITS),
    }
)
LOG = "log scale"  # a second line of the label where other panels of the same figure are linear
