"""Become a child that cannot outlive its supervisor: `python -I -S exec_child.py SUPERVISOR_PID COMMAND ...`.

Asks the kernel to kill this process when the supervisor's thread ends, even by kill -9, then becomes the
command under the same pid. A script of its own and not a `preexec_fn`, which is unsafe where threads run.
Where the kernel cannot do that (macOS), what is left over is cleared at the next start.
"""

import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(supervisor: int, command: list[str]) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != supervisor:  # it died before the kernel was asked
        sys.exit("the supervisor is gone")
    try:
        os.execvp(command[0], command)  # noqa: S606  (no shell is wanted)
    except OSError as error:
        print(f"{command[0]}: cannot be run: {error.strerror}", file=sys.stderr)
        sys.exit(127)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
