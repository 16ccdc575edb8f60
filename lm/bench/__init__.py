"""Benchmarks: the machine's limits, what this code makes of them, and what others do on the same machine in the same run."""
