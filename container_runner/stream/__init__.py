"""Bytes to messages: the child process, its lines, and what they mean."""
