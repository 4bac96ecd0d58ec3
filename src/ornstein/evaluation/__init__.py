"""Judging a model: how near its samples are to the data, whether they are copies, the report to show it."""

from ornstein.evaluation.frechet import (
    FrechetScore,
    frechet_distance,
    frechet_gaussians,
    pixel_frechet,
    real_floor,
)
from ornstein.evaluation.neighbours import (
    CopyReport,
    copy_report,
    flat_pixels,
    knn_agreement,
    nearest,
    nearest_distances,
)
from ornstein.evaluation.report import Curve, Images, Pairs, Report, Score, Skipped, Trajectory, write_report

__all__ = [
    "CopyReport",
    "Curve",
    "FrechetScore",
    "Images",
    "Pairs",
    "Report",
    "Score",
    "Skipped",
    "Trajectory",
    "copy_report",
    "flat_pixels",
    "frechet_distance",
    "frechet_gaussians",
    "knn_agreement",
    "nearest",
    "nearest_distances",
    "pixel_frechet",
    "real_floor",
    "write_report",
]
