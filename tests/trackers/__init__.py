"""What only the real trackers can show: what arrives, what a missing login does. ``make test-trackers`` runs it."""
