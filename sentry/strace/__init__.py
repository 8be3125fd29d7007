"""The printer of `--strace`: system calls and signals in the form of strace(1). Sans-IO."""
