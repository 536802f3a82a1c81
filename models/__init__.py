"""What is built from the specifications and kernels: CNN2, its data, its training, its ONNX file."""

if __name__ != "kernelproof.models":
    raise ImportError("import kernelproof.models, not models: the folder is the package's source")
