"""What is known of a cluster: its hosts and units, their states, and what is heard of them."""
