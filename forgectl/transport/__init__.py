"""How agents and hosts are reached: here, by ssh, and each other."""
