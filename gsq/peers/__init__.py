"""Other people's tokenizers, as modules that read their published checkpoints, to evaluate beside one's own."""
