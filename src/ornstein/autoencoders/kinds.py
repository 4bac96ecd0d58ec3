"""The autoencoders by name: what a config names, and `ornstein train --model` takes."""

from ornstein.autoencoders.autoencoder import Autoencoder
from ornstein.autoencoders.hierarchical import HierarchicalVAE
from ornstein.autoencoders.spatial import KLAutoencoder, PlainAutoencoder
from ornstein.autoencoders.vector import VAE
from ornstein.autoencoders.vq import VQAutoencoder

AUTOENCODERS: dict[str, type[Autoencoder]] = {
    model.kind: model for model in (PlainAutoencoder, VAE, HierarchicalVAE, VQAutoencoder, KLAutoencoder)
}
