"""The control server of one sandbox, and its clients."""
