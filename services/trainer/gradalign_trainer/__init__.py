"""The GradAlign reference trainer."""
