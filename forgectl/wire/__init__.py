"""How our processes talk: typed messages as lines of JSON over private Unix sockets."""
