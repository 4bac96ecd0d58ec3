"""The face world: a renderer of heads from an identity and attributes, with landmarks, masks and optical flow.

The faces are nobody's, and nothing is downloaded. Identity and attributes are independent, so the true result of a face
swap is known: render(identity of the source, attributes of the target).
"""

from ornstein.faces.world.dataset import Cases, Looks, cases, region, world_photos
from ornstein.faces.world.landmarks import LANDMARKS
from ornstein.faces.world.parameters import ATTRIBUTES, IDENTITY, attributes, identities, motion
from ornstein.faces.world.population import FaceWorld, nearest_identity
from ornstein.faces.world.views import Rendered, flow, render, rendered

__all__ = [
    "ATTRIBUTES",
    "IDENTITY",
    "LANDMARKS",
    "Cases",
    "FaceWorld",
    "Looks",
    "Rendered",
    "attributes",
    "cases",
    "flow",
    "identities",
    "motion",
    "nearest_identity",
    "region",
    "render",
    "rendered",
    "world_photos",
]
