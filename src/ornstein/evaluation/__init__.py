"""Evaluation of models: distances of samples from data, likelihood, copies of training images, and the report."""

from ornstein.evaluation.features import Features, open_features
from ornstein.evaluation.frechet import (
    FrechetScore,
    frechet_distance,
    frechet_gaussians,
    pixel_frechet,
    real_floor,
)
from ornstein.evaluation.kernel import KernelScore, kernel_distance
from ornstein.evaluation.markup import Table
from ornstein.evaluation.motion import (
    CorrelationError,
    MotionScore,
    autocorrelation,
    band_autocorrelation,
    clip_features,
    clip_frechet,
    correlation_error,
    flicker,
    flicker_score,
    warp_error,
)
from ornstein.evaluation.neighbours import (
    CopyReport,
    copy_report,
    flat_pixels,
    knn_agreement,
    nearest,
    nearest_distances,
)
from ornstein.evaluation.panels import Panel
from ornstein.evaluation.precision import PrecisionRecall, precision_recall
from ornstein.evaluation.report import Clips, Curve, Images, Pairs, Report, Score, Skipped, Trajectory, write_report

__all__ = [
    "Clips",
    "CopyReport",
    "CorrelationError",
    "Curve",
    "Features",
    "FrechetScore",
    "Images",
    "KernelScore",
    "MotionScore",
    "Pairs",
    "Panel",
    "PrecisionRecall",
    "Report",
    "Score",
    "Skipped",
    "Table",
    "Trajectory",
    "autocorrelation",
    "band_autocorrelation",
    "clip_features",
    "clip_frechet",
    "copy_report",
    "correlation_error",
    "flat_pixels",
    "flicker",
    "flicker_score",
    "frechet_distance",
    "frechet_gaussians",
    "kernel_distance",
    "knn_agreement",
    "nearest",
    "nearest_distances",
    "open_features",
    "pixel_frechet",
    "precision_recall",
    "real_floor",
    "warp_error",
    "write_report",
]
