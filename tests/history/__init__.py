"""The random-history checker: many clients write, servers and PostgreSQL are killed, and then every view must agree.

``python -m tests.history`` runs it at length, ``make test`` runs a short one.
"""
