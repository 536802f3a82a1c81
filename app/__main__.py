"""`kernelproof` and `python -m kernelproof`: the command line, from the first import on in reach of Ctrl-C."""

import signal
import sys
from types import FrameType
from typing import NoReturn

INTERRUPTED = 128
"""Exit status of a command that a signal ended, to which the signal's number is added: 130 after Ctrl-C."""

_interrupted = 0


def main() -> NoReturn:
    """Run one command; exit status 130 if it is interrupted, 143 if it is terminated, as `timeout` does."""
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, _interrupt)
    try:
        # Here, because the imports take longer than an impatient hand.
        from kernelproof.command_line import run

        status = run()
    except BaseException as error:
        # Where Python swallows the interrupt, in a compiler's callback, what was called then fails otherwise.
        if not (_interrupted or isinstance(error, KeyboardInterrupt)):
            raise
        print("kernelproof: interrupted; nothing half-written was left behind.", file=sys.stderr)
        status = INTERRUPTED + (_interrupted or signal.SIGINT)
    finally:
        heard()
    sys.exit(status)


def heard() -> None:
    """The interrupt has arrived: it is not repeated, so that what is left to do can be done."""
    _again_in(0)


def _interrupt(signal_number: int, frame: FrameType | None) -> None:
    global _interrupted
    # The alarm repeats the signal that came first.
    _interrupted = _interrupted or signal_number
    # Python swallows an exception that lands in a callback, of which it tells: hypothesis has one of the garbage
    # collector, numba has some of its compiler.
    sys.unraisablehook = lambda _: None
    _again_in(0.5)
    raise KeyboardInterrupt


def _again_in(seconds: float) -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


# Worker processes import this module under another name.
if __name__ == "__main__":
    main()
