"""The autoencoder and the discriminators."""
