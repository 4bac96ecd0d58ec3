"""Consent, labels, logs and signed manifests: what a swap says about itself, and who may not be swapped."""

from ornstein.faces.provenance.consent import Consent
from ornstein.faces.provenance.manifest import CHANGED, INTACT, MIME, UNSIGNED, Provenance, read, sign

__all__ = ["CHANGED", "INTACT", "MIME", "UNSIGNED", "Consent", "Provenance", "read", "sign"]
