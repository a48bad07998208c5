"""Chats: their tables, participants, messages and events, and who may see what."""
