"""What the server needs before its first feature: settings, secrets, logs and the embedded services."""
