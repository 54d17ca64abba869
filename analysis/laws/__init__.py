"""Laws as formulas over columns."""
