"""Convolution and its gradients on Hopper's tensor cores: plans, kernels, and how they are launched."""
