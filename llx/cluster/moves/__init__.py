"""Migrations: orders to instances, what may move and what not, and what became of them."""
