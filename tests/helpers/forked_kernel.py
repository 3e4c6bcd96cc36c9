"""Kernels of notebooks in a fraction of a second: forked from a process that has imported everything.

A new process imports torch, transformers and MLflow first, which takes seven seconds of CPU in each notebook.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
from multiprocessing.context import ForkServerProcess
from typing import Any

import matplotlib
import pytest
from jupyter_client import channels
from jupyter_client.provisioning import local_provisioner

from tests.helpers.launch import forking


class ForkedKernel:
    """What jupyter_client uses of `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, process: ForkServerProcess) -> None:
        self.process, self.pid = process, int(process.pid or 0)

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int | None:
        self.process.join()
        return self.process.exitcode

    def send_signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def launch_kernel(cmd: list[str], env: dict[str, str], cwd: str | None = None, **rest: Any) -> ForkedKernel:
    """Start a kernel, as the function of that name in jupyter_client does. cmd: `python -m ipykernel_launcher ...`."""
    process = forking().Process(target=_kernel, args=(cmd[2:], env, str(cwd or os.curdir)))
    process.start()
    kernel = ForkedKernel(process)
    while process.is_alive() and os.getpgid(kernel.pid) != kernel.pid:  # else a signal to its group would end the tests
        time.sleep(0.005)
    return kernel


def _kernel(words: list[str], environment: dict[str, str], folder: str) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    matplotlib.rcParams["backend"] = "module://matplotlib_inline.backend_inline"  # as where it is imported in a kernel
    sys.argv[:] = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def fork_kernels(patch: pytest.MonkeyPatch) -> None:
    """Kernels are forked from now on, and no answer of a kernel is missed.

    nbclient sends the messages of widgets on the socket on which it waits for an answer, and can then wait for ever
    (nbclient's issue 312): it looks again each second.
    """
    patch.setattr(local_provisioner, "launch_kernel", launch_kernel)
    received = channels.AsyncZMQSocketChannel.get_msg

    async def get_msg(channel: Any, timeout: float | None = None) -> dict[str, Any]:
        while timeout is None and not await channel.socket.poll(1000):
            pass
        return await received(channel, timeout)

    patch.setattr(channels.AsyncZMQSocketChannel, "get_msg", get_msg)
