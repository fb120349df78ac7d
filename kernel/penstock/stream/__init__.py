"""The stream engine: append, read and trim of streams over a WAL, a log cache, and objects.

``object_format`` are the bytes of an object (pure), ``entry`` those of a WAL entry (pure), ``uploader`` moves
frozen log-cache blocks into objects, ``reader`` reads them back, ``lifecycle`` deletes what nothing refers to,
``engine`` holds them together.
"""

from __future__ import annotations
