"""Calls between tabs of a real Chromium: what a client in a browser needs of the server, and of the relay."""
