"""One optimizer step of a GSQ-GAN, and many."""
