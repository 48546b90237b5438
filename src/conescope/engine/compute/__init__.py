"""Arithmetic on tensors: the products, terms and sums of a kernel, and their memory."""
