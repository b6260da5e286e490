"""Ray on a cluster's hosts: its processes, what keeps them, and node agents as its actors."""
