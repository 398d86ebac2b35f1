"""What lies under results/: records, studies, locks."""
