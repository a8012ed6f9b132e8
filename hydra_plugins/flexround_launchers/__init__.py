"""Launchers of a sweep's runs: on SLURM, or several at a time on this machine.

Hydra looks for launchers in hydra_plugins and imports every module here at every start, so that
submitit and joblib are imported only where they are used.
"""
