"""Whether there is a GPU for the CUDA kernels, and which."""


def gpu() -> tuple[bool, str]:
    """True with its name and compute capability, or False with the reason why there is none."""
    try:
        from numba import cuda

        if not cuda.is_available():
            return False, "none found"
    except ImportError:
        return False, "none: numba-cuda is not installed (extra kernelproof[cuda])"
    except RuntimeError:
        return False, "none: no CUDA runtime (a CUDA toolkit, or extra kernelproof[ptx])"
    device = cuda.get_current_device()
    name = device.name.decode() if isinstance(device.name, bytes) else device.name
    return True, f"{name}, compute capability {'.'.join(map(str, device.compute_capability))}"
