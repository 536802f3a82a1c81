"""`python -m kernelproof` is the command line."""

from kernelproof.command_line import main

main()
