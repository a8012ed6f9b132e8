"""The application: how a command line becomes a run and its record."""
