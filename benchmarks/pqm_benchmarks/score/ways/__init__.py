"""Ways to score the same solutions, each written as its source computes it."""
