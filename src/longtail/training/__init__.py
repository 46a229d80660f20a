"""One training loop, and the tasks that it trains: experts, classifiers, router."""
