"""How the threads of a training step wait for each other: asleep, so that a busy machine does not stop them.

By default a thread of OpenMP that is done with its part of a step turns in a loop until the others are done. Next to
another busy process it uses up its share of the core that way, and is then held up for milliseconds at the next part,
of which a step has thousands. A thread that sleeps keeps its share.
"""

from __future__ import annotations

from collections.abc import MutableMapping

# how long a thread turns before it sleeps: of GNU's OpenMP in turns, of LLVM's and Intel's in milliseconds
WAITING = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
OWN = ("OMP_WAIT_POLICY", *WAITING)  # a user who sets one of these has chosen


def wait_asleep(environment: MutableMapping[str, str]) -> None:
    """Set how threads wait, unless the user has. OpenMP reads it when torch is imported."""
    if not any(name in environment for name in OWN):
        environment.update(WAITING)
