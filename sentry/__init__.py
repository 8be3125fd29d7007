"""The sentry: the kernel that guests see. Nothing in it touches ptrace or seccomp; see docs/architecture.md."""
