"""`python -m kernelproof` is the command line."""

from kernelproof.command_line import main

# Worker processes import this module under another name.
if __name__ == "__main__":
    main()
