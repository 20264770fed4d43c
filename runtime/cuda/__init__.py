"""Running on NVIDIA GPUs: the driver through ctypes, and the templates of the C++ launcher."""
