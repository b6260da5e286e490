"""What runs on every host: the node agent, the shims under which processes live, the instances."""
