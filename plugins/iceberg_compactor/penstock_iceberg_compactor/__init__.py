"""Lake compactor that keeps topics as Iceberg tables."""
