"""The controller: one daemon a run, on the launching machine; holds its states and decides its policy."""
