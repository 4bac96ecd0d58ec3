"""The autoencoders by the names that configs and `ornstein train --model` use."""

from ornstein.autoencoders.autoencoder import Autoencoder
from ornstein.autoencoders.hierarchical import HierarchicalVAE
from ornstein.autoencoders.spatial import KLAutoencoder, PlainAutoencoder
from ornstein.autoencoders.vector import VAE
from ornstein.autoencoders.vq import VQAutoencoder

__all__ = ["AUTOENCODERS"]

AUTOENCODERS: dict[str, type[Autoencoder]] = {
    model.kind: model for model in (PlainAutoencoder, VAE, HierarchicalVAE, VQAutoencoder, KLAutoencoder)
}
