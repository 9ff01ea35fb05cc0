"""Mathematics: affine maps, canonical networks, and the statements of the paper, checked. Randomness is an argument."""
