"""Laws, generators, bounds and mutants: what it takes to prove a kernel equal to its specification, or refute it."""

if __name__ != "kernelproof.proofs":
    raise ImportError("import kernelproof.proofs, not proofs: the folder is the package's source")
