"""Kafka APIs: one module per family, requests in, responses out. ``context`` has what the handlers stand on."""
