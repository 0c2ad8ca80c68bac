"""The message plane: how processes of a run call each other. All that knows ZeroMQ is in this folder.

A rank listens on a Unix socket in the run's private folder, and whoever calls it connects there. Between machines
messages go through one messenger a host. This package imports nothing of actors, drivers, agents or controllers.
"""
