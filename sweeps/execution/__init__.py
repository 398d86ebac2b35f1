"""Running a sweep: Ray, workers, stages, progress."""
