"""What is read off kernels and series of kernels."""
