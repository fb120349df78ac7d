"""The bench: OpenMessaging-Benchmark-style workloads, run with librdkafka against any Kafka broker.

``workload`` reads the YAML files, ``histogram`` counts latencies, ``run`` conducts one workload over client
processes (``_worker``), ``results`` turns what they counted into the benchmark's JSON, ``page`` draws it.
``floor``, ``start``, ``cold_reads`` and ``lake`` measure the budgets that no workload shows.
"""
