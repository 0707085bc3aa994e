"""What is timed; README.md beside this file."""
