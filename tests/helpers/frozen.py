"""Imported last by the fork server: training collects garbage, and its children need not look through what it imported.

Looking would also copy that memory for each child.
"""

from __future__ import annotations

import gc

gc.collect()
gc.freeze()
