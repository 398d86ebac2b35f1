"""Where runs are logged besides their records."""
