"""The cells of a sweep, and the folder that keeps them."""
