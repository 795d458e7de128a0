"""Real services for tests and benchmarks, started on free ports and in directories of their own."""
