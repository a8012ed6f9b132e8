"""Sweepers: what a sweep's next runs are. Optuna is imported only where it is used."""
