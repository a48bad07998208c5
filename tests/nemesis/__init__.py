"""Faults on purpose: real PostgreSQL, Redis, nginx and servers are killed and frozen while clients write.

``python -m tests.nemesis`` runs it at length, ``make test`` runs a short form.
"""
