"""The kernel proper: tasks, signals, waits. Sans-IO: it knows Memory and Platform only as protocols."""
