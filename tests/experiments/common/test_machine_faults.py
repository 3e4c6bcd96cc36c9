"""Which errors are the machine's, through whatever they were wrapped in."""

from __future__ import annotations

import errno
import http.client
import os
import socket
import sqlite3
import ssl
import urllib.error
from concurrent.futures.process import BrokenProcessPool
from email.message import Message

import aiohttp
import httpx
import pytest
import requests
import torch
import torch.distributed as dist
import urllib3
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from experiments.common.errors import MachineError, RunError
from experiments.common.machine_faults import disk_full, of_the_machine

MACHINE = [
    MemoryError(),
    *(OSError(number, os.strerror(number)) for number in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EIO)),
    *(OSError(number, os.strerror(number)) for number in (errno.EROFS, errno.ESTALE, errno.EMFILE, errno.ENFILE)),
    RuntimeError("unable to mmap 1234 bytes from file <m/model.safetensors>: Cannot allocate memory (12)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 3153216 vs 3153104"),
    RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable"),
    RuntimeError("No CUDA-capable device is detected"),
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    LocalEntryNotFoundError("cannot find the requested files in the disk cache and outgoing traffic is disabled"),
    requests.exceptions.ConnectTimeout("timed out"),
    OSError("We couldn't connect to 'https://huggingface.co' to load the files"),
    ConnectionResetError("Connection reset by peer"),
    *(OSError(number, os.strerror(number)) for number in (errno.EACCES, errno.ENOTCONN, errno.ENODEV, errno.ENOLCK)),
    *(OSError(number, os.strerror(number)) for number in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN)),
    *(OSError(number, os.strerror(number)) for number in (errno.EPERM, errno.EAGAIN, errno.EBUSY, errno.EFBIG)),
    RuntimeError('Error while serializing: IoError(Os { code: 13, message: "Permission denied" })'),
    RuntimeError("can't start new thread"),
    RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
    BrokenProcessPool("A process in the process pool was terminated abruptly"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    OSError("Consistency check failed: file should be of size 4 but has size 2"),
    MachineError("the process that checks replies has ended"),
    FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/var/tmp']"),
    RuntimeError("received 0 items of ancdata"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("not enough memory: you tried to allocate 4096 bytes"),
    *(sqlite3.OperationalError(text) for text in ("attempt to write a readonly database", "database is locked")),
    *(OSError(number, os.strerror(number)) for number in (errno.EUCLEAN, errno.EREMOTEIO, errno.ENOLINK)),
    *(OSError(number, os.strerror(number)) for number in (errno.EKEYEXPIRED, errno.ENOKEY, errno.EBADMSG)),
    RuntimeError(f"unable to write a file: {os.strerror(errno.EKEYEXPIRED)}"),  # of Kerberos, on a network disk
    *(
        RuntimeError(f"CUDA error: {text}")
        for text in ("the launch timed out and was terminated", "hardware stack error")
    ),
    *(
        RuntimeError(f"CUDA error: {text}")
        for text in ("invalid device ordinal", "system has unsupported display driver")
    ),
    RuntimeError("No CUDA GPUs are available"),
    RuntimeError("No HIP GPUs are available"),
    RuntimeError("HIP error: unspecified launch failure"),
    RuntimeError("HIP error: no ROCm-capable device is detected"),
    RuntimeError("NCCL error in: x.cpp:1, unhandled system error\nncclSystemError: System call (e.g. socket) failed"),
    RuntimeError("Found no NVIDIA driver on your system."),
    RuntimeError("CUDA driver error: unknown error"),
    RuntimeError("CUDA unknown error - this may be due to an incorrectly set up environment"),
    RuntimeError("Unexpected error from cudaGetDeviceCount(). Error 804: forward compatibility was attempted"),
    dist.DistNetworkError("The client socket has timed out after 1000ms while trying to connect to (127.0.0.1, 1)."),
    dist.DistStoreError("wait timeout after 1000ms, keys: /x"),
    *(
        RuntimeError(f"[gloo/transport/tcp/pair.cc:547] {text}")
        for text in ("Connection closed by peer [::1]:7", "Read error [::1]:7: Connection reset by peer")
    ),
    RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    socket.gaierror(-3, "Temporary failure in name resolution"),
    ssl.SSLEOFError(8, "EOF occurred in violation of protocol"),
    http.client.IncompleteRead(b"", 5),
    urllib.error.URLError("no route"),
    *(urllib.error.HTTPError("http://x", status, "busy", Message(), None) for status in (503, 520, 524, 529)),
    *(kind("broken") for kind in (httpx.WriteError, httpx.CloseError, httpx.ProxyError, httpx.RemoteProtocolError)),
    *(kind("broken") for kind in (requests.exceptions.ChunkedEncodingError, requests.exceptions.RetryError)),
    urllib3.exceptions.IncompleteRead(1, 2),
    aiohttp.ClientPayloadError("Response payload is not completed"),
]
OWN = [
    ValueError("loss became nan"),
    RuntimeError("something else"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("HIP error: device-side assert triggered"),
    dist.DistBackendError("NCCL error in: x.cpp:1, invalid usage"),
    torch.OutOfMemoryError("HIP out of memory. Tried to allocate 80 GiB"),
    RuntimeError("CUDA error: operation not permitted when stream is capturing"),
    RunError("no finished arm"),
    IsADirectoryError(errno.EISDIR, "Is a directory"),
    FileNotFoundError(errno.ENOENT, "No such file or directory"),
    RepositoryNotFoundError("404", response=requests.Response()),
    urllib.error.HTTPError("http://x", 404, "not found", Message(), None),
    sqlite3.DatabaseError("database disk image is malformed"),
    httpx.InvalidURL("no address"),
]


def wrapped(error: BaseException) -> BaseException:
    """Return an error that another raised as its cause, and a third while that one was handled."""
    try:
        try:
            raise RuntimeError("writing failed") from error
        except RuntimeError:
            raise KeyError("cleaning up")  # noqa: B904
    except KeyError as last:
        return last


@pytest.mark.parametrize("error", MACHINE, ids=lambda error: f"{type(error).__name__} {error}"[:50])
def test_faults_of_the_machine_are_seen_through_other_errors(error: BaseException) -> None:
    assert of_the_machine(error).startswith(type(error).__name__)
    assert of_the_machine(wrapped(error)) == of_the_machine(error)


@pytest.mark.parametrize("error", OWN, ids=lambda error: f"{type(error).__name__} {error}"[:50])
def test_errors_of_the_work_are_its_own(error: BaseException) -> None:
    assert of_the_machine(error) == ""
    assert of_the_machine(wrapped(error)) == ""


def test_an_error_that_was_dealt_with_is_not_the_cause_of_a_later_one() -> None:
    later = ValueError("no such layer")
    later.__context__, later.__suppress_context__ = MemoryError(), True
    assert of_the_machine(later) == ""


def test_a_full_disk_is_no_other_fault() -> None:
    assert disk_full(wrapped(OSError(errno.ENOSPC, "No space left on device")))
    assert disk_full(RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 3153216 vs 3153104"))
    assert not disk_full(MemoryError())
