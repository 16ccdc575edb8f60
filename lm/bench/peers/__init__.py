"""What a user would run instead, written for the benchmarks; each needs the extra `bench` and runs in a process of its own."""
