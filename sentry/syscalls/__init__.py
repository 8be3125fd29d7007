"""The syscall table and the handlers, by family."""
