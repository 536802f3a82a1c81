"""What runs on the host: arrays as they come, calls like one before, memory to work in, launches through the driver."""
