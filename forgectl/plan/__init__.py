"""The plan: a spec placed on hosts and GPUs, with every rank's environment. Pure functions, no I/O."""
