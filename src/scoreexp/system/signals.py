"""The signals on which work is saved before it stops."""

import signal


def stop_signals() -> list[signal.Signals]:
    """Ctrl-C, SIGTERM and, where there is one and ``nohup`` does not have it ignored, the end of the terminal.

    >>> signal.SIGINT in stop_signals(), signal.SIGTERM in stop_signals()
    (True, True)
    """
    hangup = getattr(signal, "SIGHUP", None)
    heard = [hangup] if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN else []
    return [signal.SIGINT, signal.SIGTERM, *heard]
