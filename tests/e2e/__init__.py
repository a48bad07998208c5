"""What two people notice: whole journeys through a real server, real services and real clients."""
