"""Tell a fault of the machine (memory, disk, handles, network, a lost device) from one of the work itself.

Such a fault may be gone at the next start, so it is never recorded as a result. "CUDA out of memory" is not among them:
a smaller batch helps, and the arm says so.
"""

from __future__ import annotations

import errno
import http.client
import os
import ssl
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from socket import gaierror
from urllib.error import ContentTooShortError, HTTPError

from experiments.common.errors import MachineError

DISK = (errno.ENOSPC, errno.EDQUOT)


def _numbers(*names: str) -> tuple[int, ...]:
    """Return the numbers of errors, of those that this system has."""
    return tuple(getattr(errno, name) for name in names if hasattr(errno, name))


NUMBERS = (
    *DISK,
    *_numbers("ENOMEM", "EIO", "EROFS", "ESTALE", "EMFILE", "ENFILE", "ETIMEDOUT", "EACCES", "ENOLCK", "ENOTCONN"),
    *_numbers("ENODEV", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENOBUFS", "EUCLEAN", "EREMOTEIO"),
    *_numbers("ENOMEDIUM", "ENOLINK", "ECOMM", "ENONET", "ESHUTDOWN"),
    *_numbers("EKEYEXPIRED", "EKEYREVOKED", "EKEYREJECTED", "ENOKEY"),  # of network disks whose ticket has run out
)
# whose texts other errors have too
UNNAMED = _numbers("EPERM", "EAGAIN", "EBUSY", "ENXIO", "EFBIG", "EBADMSG", "EPROTO", "ETIME")
# texts of torch.save when the disk is full, and of SQLite; their errors have no number
DISK_TEXTS = ("PytorchStreamWriter failed writing", "iostream error", "unexpected pos", "database or disk is full")
TEXTS = (
    *DISK_TEXTS,
    *(os.strerror(number) for number in NUMBERS),
    "disk I/O error",
    "unable to open database file",
    "attempt to write a readonly database",
    "database is locked",
    "No usable temporary directory found",  # tempfile, of a full disk too; its number is that of a missing file
    "items of ancdata",  # torch, of too many open files
    "can't start new thread",
    "is killed by signal",  # a worker of a DataLoader
    "exited unexpectedly",
    "Consistency check failed",  # huggingface_hub, of a download that was cut
    "DefaultCPUAllocator:",  # torch has no memory on the host, and its error no number
    "std::bad_alloc",
    "not enough memory: you tried to allocate",
    "CUDA-capable device",  # none is detected, or all are busy
    "CUDA error: initialization error",
    "CUDA driver initialization failed",
    "CUDA error: unspecified launch failure",
    "CUDA error: unknown error",
    "CUDA driver error",
    "CUDA unknown error",
    "GetDeviceCount()",  # "Unexpected error from cudaGetDeviceCount()", of a driver that does not answer
    "CUDA error: the launch timed out",
    "CUDA error: invalid device ordinal",
    "CUDA error: system has unsupported display driver",
    "No CUDA GPUs are available",
    "Found no NVIDIA driver",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "CUDA error: out of memory",  # another process has the device; a batch that is too large is "CUDA out of memory"
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "HIPBLAS_STATUS_NOT_INITIALIZED",
    "ROCm-capable device",
    "ncclSystemError",  # a call of the system or a device failed
    "ncclInternalError",
    "ncclRemoteError",  # another process has ended, or the network
    "Connection closed by peer",  # gloo, of the same; so are the next ones
    "Timed out waiting",
    os.strerror(errno.ECONNRESET),
    "uncorrectable ECC error",
    "hardware error",
    "hardware stack error",
    "GPU is lost",
    "system not yet initialized",
    "couldn't connect to",  # transformers and datasets, of the Hugging Face Hub
    "Couldn't reach",
)
TYPES = (
    *(MemoryError, ConnectionError, TimeoutError, MachineError, BrokenExecutor),
    *(gaierror, ssl.SSLError, http.client.HTTPException, ContentTooShortError),
)
# with such errors
NETWORK = ("requests", "urllib", "urllib3", "httpx", "httpcore", "aiohttp", "huggingface_hub", "torch")
NETWORK_WORDS = (
    *("Connect", "Timeout", "LocalEntryNotFound", "OfflineMode", "NameResolution", "Protocol", "NetworkError", "Proxy"),
    *("ReadError", "WriteError", "ChunkedEncoding", "IncompleteRead", "RetryError", "MaxRetry", "SSLError", "Payload"),
    *("URLError", "DistNetwork", "DistStore"),
)
BUSY = (408, 425, 429, 500, 502, 503, 504, *range(520, 525), 529, 530)  # HTTP statuses that may be gone at the next try


def of_the_machine(error: BaseException, given: str = "") -> str:
    """Return the fault of the machine that caused an error, as one line; an empty text if there is none.

    given: a text of others that the error may repeat (a reply): its words say nothing of the machine.
    """
    return next((_line(cause) for cause in causes(error) if _is_fault(cause, given)), "")


def disk_full(error: BaseException) -> bool:
    """Whether an error or one of its causes says that the disk is full."""
    words = (*DISK_TEXTS, *map(os.strerror, DISK))
    return any(_number(cause) in DISK or any(text in str(cause) for text in words) for cause in causes(error))


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that led to it, the latest first."""
    seen: set[int] = set()
    while id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__) or error


def _is_fault(error: BaseException, given: str) -> bool:
    if isinstance(error, TYPES) or _number(error) in (*NUMBERS, *UNNAMED) or _of_the_network(error):
        return True
    said, given = (text.replace("HIP ", "CUDA ") for text in (str(error), given))  # PyTorch for AMD says HIP
    return any(text in said and text not in given for text in TEXTS)


def _of_the_network(error: BaseException) -> bool:
    status = getattr(getattr(error, "response", None), "status_code", None)
    status = error.code if isinstance(error, HTTPError) else status
    if status is not None:
        return status in BUSY
    kinds = [kind for kind in type(error).__mro__ if kind.__module__.partition(".")[0] in NETWORK]
    return any(word in kind.__name__ for kind in kinds for word in NETWORK_WORDS)


def _number(error: BaseException) -> int | None:
    return getattr(error, "errno", None)


def _line(error: BaseException) -> str:
    name, lines = type(error).__name__, str(error).strip().splitlines()
    return f"{name}: {lines[0]}" if lines else name
