"""Arithmetic on tensors: products, terms and sums of a kernel, and the memory that they take."""
