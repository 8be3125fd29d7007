"""What a checkpoint holds, and how it lies on disk. Plain data: knows nothing of ptrace or descriptors of ours."""
