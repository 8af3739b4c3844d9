"""The Triton side of the kernels: launchers and kernels, imported only where tensors live on a GPU."""
