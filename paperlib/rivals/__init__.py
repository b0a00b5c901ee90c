"""Other ways to train a robust VAE, on the same networks and by the same loop, and outlier detectors of other kinds;
they promise what each file says.

The beta-VAE and weight decay are no files of their own: `TrainConfig(kappa=1, beta=4)`, `TrainConfig(kappa=1,
weight_decay=0.1)`.
"""

# These modules register objectives with the words that stand for them.
from paperlib.rivals import (  # noqa: F401
    adversarial,
    civet,
    expressive_losses,
    interval_regularisers,
    noise,
    outliers,
    small_boxes,
    smooth_encoder,
)
