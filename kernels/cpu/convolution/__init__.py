"""Every way to compute a convolution or a gradient of one on the CPU; algorithms.py is the table of them."""
