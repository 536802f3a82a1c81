"""Fast kernels on ordinary arithmetic, for what leaves tensor cores empty or waits for memory anyway."""
