"""The stream engine: append, read and trim of streams over a WAL, a log cache, and objects.

``object_format`` are the bytes of an object (pure), ``entry`` those of a WAL entry (pure), ``upload_plan`` says what
goes into which object (pure), ``object_puts`` puts one block of entries, ``uploader`` puts and commits many in order.
``recovery`` uploads what a WAL holds, ``replay`` decides which of it (pure). ``reader`` reads objects back,
``lifecycle`` deletes those that nothing refers to, ``engine`` holds all together.
"""

from __future__ import annotations
