"""Likelihoods: the variational bound (E11, E12, E17), log p(x_0) by the flow (E21), and the optimal variance (E9)."""

from ornstein.likelihood.bits import bits_per_dim
from ornstein.likelihood.bound import Bound, vlb
from ornstein.likelihood.dequantise import Dequantiser, fit_dequantiser
from ornstein.likelihood.few import FewSteps, fit_few
from ornstein.likelihood.flow import LogProb, ode
from ornstein.likelihood.variance import fit_variance
from ornstein.solvers.variance import AnalyticVariance

__all__ = [
    "AnalyticVariance",
    "Bound",
    "Dequantiser",
    "FewSteps",
    "LogProb",
    "bits_per_dim",
    "fit_dequantiser",
    "fit_few",
    "fit_variance",
    "ode",
    "vlb",
]
