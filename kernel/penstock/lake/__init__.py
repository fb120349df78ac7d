"""Tables of topics in a lake: made by a plugin from what is committed to the object store.

``service`` finds the topics that want a table and gives each a task (``table_task``), which claims the topic, reads
its records (``source``), makes columns of them (``columns``) and decides when to commit. Producing and the
write-ahead log know nothing of it.

``configs`` are the topic configs of tables, which begin with ``penstock.lake.``: ``enable``, ``commit.interval.ms``,
``commit.bytes`` and ``gap`` of the kernel, and those that the compactor adds, such as ``value.format`` and
``schema.registry.url``.
"""
