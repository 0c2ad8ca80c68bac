"""The controller: one daemon per run, on the launching machine. It holds the run's state and decides what happens."""
