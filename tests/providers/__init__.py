"""Apple, Google and push services of browsers, for tests: real servers that speak their protocols, checks included."""
