"""The steps of a run, their wiring, and a runner for one machine."""
