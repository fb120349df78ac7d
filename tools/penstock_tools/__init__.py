"""What people use beside a running broker: command line, client, benchmarks, inspection, pytest plugin.

A broker needs none of it. It builds on the kernel, which doesn't know it.
"""
