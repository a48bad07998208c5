"""Metrics, alerts and the dashboard, tried with a real Prometheus."""
