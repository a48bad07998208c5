"""The wire: HTTP, WebSocket, tokens, limits, who is connected. Nothing here knows a feature or a table."""
