"""Procedural faces: a renderer of heads from who they are and what they do, with landmarks, masks and optical flow.

Nobody's picture and nothing to download; identity and attributes are independent, so the true answer of a face swap is
known: render(identity of the source, attributes of the target).
"""

from ornstein.data.faces.landmarks import LANDMARKS
from ornstein.data.faces.parameters import ATTRIBUTES, IDENTITY, attributes, identities, motion
from ornstein.data.faces.views import Rendered, flow, render, rendered
from ornstein.data.faces.world import FaceWorld, nearest_identity

__all__ = [
    "ATTRIBUTES",
    "IDENTITY",
    "LANDMARKS",
    "FaceWorld",
    "Rendered",
    "attributes",
    "flow",
    "identities",
    "motion",
    "nearest_identity",
    "render",
    "rendered",
]
