"""Images, each known by its content, and the batches made of them."""
