"""Training performance: each run is a process (`measure`), its result a line of one table (`table`)."""
