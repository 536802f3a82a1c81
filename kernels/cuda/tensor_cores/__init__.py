"""Convolution and its gradients on tensor cores: plans, kernels, and how they are launched."""
