"""Which requests there are and where, and what operators change of them."""
