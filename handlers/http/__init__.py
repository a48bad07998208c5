"""HTTP: the base of every endpoint, how it answers, uploads, downloads, health, and the listener."""
