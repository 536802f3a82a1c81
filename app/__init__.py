"""kernelproof: the reference standard for CNN operators. See README.md."""
