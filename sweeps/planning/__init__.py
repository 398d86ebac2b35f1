"""What a sweep takes before it starts: how runs share trials, and the dry run."""
