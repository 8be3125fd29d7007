"""`python -m trapline` and the `trapline` command."""

import sys


def main() -> int:
    """Run the command line; returns the exit status."""
    from trapline.sentry.cli.main import main as run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
