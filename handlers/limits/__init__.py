"""Limits: rates, budgets of accounts, and fair queues."""
