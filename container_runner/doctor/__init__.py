"""Whether this machine can run an agent, and what to do if not."""
