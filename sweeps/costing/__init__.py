"""What the cells will cost, learnt from measured runs."""
