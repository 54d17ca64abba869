"""What the tokens are good for: a small generator of them, its exact code length and the quality of its samples."""
