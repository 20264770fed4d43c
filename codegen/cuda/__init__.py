"""CUDA: kernels for tensor cores, their launches, and the artifact that runs with nothing but the driver."""
