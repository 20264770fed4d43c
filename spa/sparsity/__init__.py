"""Sparsity: patterns, masks and repair of weights that stay where channels do not."""
