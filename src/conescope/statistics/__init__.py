"""Statistics of kernels and of series of kernels, as functions from kernels to numbers.

- `spectrum`: eigenvalues, effective rank and sharpness;
- `alignment`: alignment with labels and with other kernels;
- `attribution`: shares of the movement between two kernels, by layer, class and sample;
- `uncertainty`: error bars of the kernel distance S over the choice of the probe;
- `cone`: the test for the cone: what kind of motion the kernel makes in phase II.
"""
