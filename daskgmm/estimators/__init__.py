"""scikit-learn's classes: they validate, call down and set attributes."""

from daskgmm.estimators.gaussian import GaussianMixture as GaussianMixture
from daskgmm.estimators.models import load as load
