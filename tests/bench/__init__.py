"""Benchmarks: each figure of ours beside a yardstick measured in the same run on the same cores."""
