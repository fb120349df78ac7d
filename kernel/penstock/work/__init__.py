"""Waiting for room, retry, periodic jobs and the like: each mechanism has one module here.

Waiting for room (``room``), finishing in spite of cancellation (``finish``), retry with back-off (``retry``),
periodic jobs (``periodic``), pieces of n (``pieces``), the one error behind a group (``one_error``), a call
after a while (``timer``), turns at the object store (``traffic``). None of them knows what the work is.
"""
