"""What a run will do and cost, before it runs: `axolotl-clo inspect CONFIG`."""
