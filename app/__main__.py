"""`kernelproof` and `python -m kernelproof`: the command line, from the first import on in reach of Ctrl-C."""

import signal
import sys
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130


def main() -> NoReturn:
    """Run one command; exit status 130 if it is interrupted."""
    signal.signal(signal.SIGINT, _interrupt)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, _interrupt)
    try:
        # Here, because the imports take longer than an impatient hand.
        from kernelproof.command_line import run

        status = run()
    except KeyboardInterrupt:
        print("kernelproof: interrupted; nothing half-written was left behind.", file=sys.stderr)
        status = INTERRUPTED
    finally:
        _again_in(0)
    sys.exit(status)


def _interrupt(signal_number: int, frame: FrameType | None) -> None:
    # Python swallows an exception that lands in a callback of the garbage collector, and hypothesis has one.
    _again_in(0.5)
    raise KeyboardInterrupt


def _again_in(seconds: float) -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


# Worker processes import this module under another name.
if __name__ == "__main__":
    main()
