"""The wire: HTTP, WebSocket, tokens, limits, open sockets. Nothing here depends on a feature or a table."""
