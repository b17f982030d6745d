"""Chats to text, as the template of a model says."""
