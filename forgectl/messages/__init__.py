"""The message plane: how processes of a run call each other. All code that knows ZeroMQ is in this folder.

A rank listens on a Unix socket in the run's private folder, and its callers connect there. Between machines, messages
go through one messenger per host. This package imports nothing of actors, drivers, agents or controllers.
"""
