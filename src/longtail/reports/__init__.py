"""Results for people: terminal tables, the run's page, plots."""
