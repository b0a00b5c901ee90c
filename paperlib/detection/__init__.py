"""What two-sided certificates are for: detectors whose verdict on a row no small perturbation can change.

Estimators by scikit-learn's conventions. They are imported from here, not from `paperlib`, which needs no scikit-learn.
"""

from paperlib.detection.classifier import GenerativeClassifier
from paperlib.detection.detector import CertifiedDetector

__all__ = ["CertifiedDetector", "GenerativeClassifier"]
