"""Autoencoders: plain, variational, hierarchical, vector-quantised; their losses and files (E26-E30)."""

from ornstein.autoencoders.autoencoder import Autoencoder, Terms, addressed, drawn
from ornstein.autoencoders.chain import DiffusionChain
from ornstein.autoencoders.checkpoint import fingerprint, load, save
from ornstein.autoencoders.gaussian import Latents
from ornstein.autoencoders.hierarchical import HierarchicalVAE
from ornstein.autoencoders.hierarchy import Elbo, Noise, matching_rates, path_rates
from ornstein.autoencoders.kinds import AUTOENCODERS
from ornstein.autoencoders.objective import AutoencoderLoss
from ornstein.autoencoders.spatial import KLAutoencoder, PlainAutoencoder
from ornstein.autoencoders.vector import VAE
from ornstein.autoencoders.vq import VQAutoencoder

__all__ = [
    "AUTOENCODERS",
    "VAE",
    "Autoencoder",
    "AutoencoderLoss",
    "DiffusionChain",
    "Elbo",
    "HierarchicalVAE",
    "KLAutoencoder",
    "Latents",
    "Noise",
    "PlainAutoencoder",
    "Terms",
    "VQAutoencoder",
    "addressed",
    "drawn",
    "fingerprint",
    "load",
    "matching_rates",
    "path_rates",
    "save",
]
