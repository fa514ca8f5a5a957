"""The GradAlign scoring service."""
