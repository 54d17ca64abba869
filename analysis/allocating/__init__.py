"""How to spend a budget: the best point of a law under a constraint on its cost, with intervals."""
