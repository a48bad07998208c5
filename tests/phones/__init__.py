"""The phones of the end-to-end tests: clients that know nothing of the server but its wire."""
