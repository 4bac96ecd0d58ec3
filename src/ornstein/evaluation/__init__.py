"""Evaluation of models: likelihood, distances of samples from data, copies of training images, and the report.

Names are imported at first use: the settings of the commands need no PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ornstein.evaluation.distortion import psnr, ssim
    from ornstein.evaluation.features import Features, open_features
    from ornstein.evaluation.frechet import FrechetScore, frechet_distance, frechet_gaussians, pixel_frechet, real_floor
    from ornstein.evaluation.kernel import KernelScore, kernel_distance
    from ornstein.evaluation.markup import Table
    from ornstein.evaluation.measure import evaluate_model
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
        motion_error,
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
    from ornstein.evaluation.noise_left import noise_share
    from ornstein.evaluation.panels import Panel
    from ornstein.evaluation.plan import Plan
    from ornstein.evaluation.precision import PrecisionRecall, precision_recall
    from ornstein.evaluation.report import Clips, Curve, Images, Pairs, Report, Score, Skipped, Trajectory, write_report
    from ornstein.evaluation.results import Evaluation

__all__ = [
    "Clips",
    "CopyReport",
    "CorrelationError",
    "Curve",
    "Evaluation",
    "Features",
    "FrechetScore",
    "Images",
    "KernelScore",
    "MotionScore",
    "Pairs",
    "Panel",
    "Plan",
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
    "evaluate_model",
    "flat_pixels",
    "flicker",
    "flicker_score",
    "frechet_distance",
    "frechet_gaussians",
    "kernel_distance",
    "knn_agreement",
    "motion_error",
    "nearest",
    "nearest_distances",
    "noise_share",
    "open_features",
    "pixel_frechet",
    "precision_recall",
    "psnr",
    "real_floor",
    "ssim",
    "warp_error",
    "write_report",
]

_MODULES = {
    "Clips": "report",
    "CopyReport": "neighbours",
    "CorrelationError": "motion",
    "Curve": "report",
    "Evaluation": "results",
    "Features": "features",
    "FrechetScore": "frechet",
    "Images": "report",
    "KernelScore": "kernel",
    "MotionScore": "motion",
    "Pairs": "report",
    "Panel": "panels",
    "Plan": "plan",
    "PrecisionRecall": "precision",
    "Report": "report",
    "Score": "report",
    "Skipped": "report",
    "Table": "markup",
    "Trajectory": "report",
    "autocorrelation": "motion",
    "band_autocorrelation": "motion",
    "clip_features": "motion",
    "clip_frechet": "motion",
    "copy_report": "neighbours",
    "correlation_error": "motion",
    "evaluate_model": "measure",
    "flat_pixels": "neighbours",
    "flicker": "motion",
    "flicker_score": "motion",
    "motion_error": "motion",
    "frechet_distance": "frechet",
    "frechet_gaussians": "frechet",
    "kernel_distance": "kernel",
    "knn_agreement": "neighbours",
    "nearest": "neighbours",
    "nearest_distances": "neighbours",
    "noise_share": "noise_left",
    "open_features": "features",
    "pixel_frechet": "frechet",
    "precision_recall": "precision",
    "psnr": "distortion",
    "real_floor": "frechet",
    "ssim": "distortion",
    "warp_error": "motion",
    "write_report": "report",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
