"""GradAlign in other people's trainers, one package each."""
