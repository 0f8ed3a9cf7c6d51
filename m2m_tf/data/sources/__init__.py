"""Modules that make the tables of the data contract from one source each."""
