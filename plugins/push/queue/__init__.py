"""The push queue: jobs that wait in Redis, their order, and their outcomes."""
