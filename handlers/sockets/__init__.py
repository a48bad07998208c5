"""WebSockets: the endpoint, open sockets, who is connected, and how frames reach a user on any instance."""
