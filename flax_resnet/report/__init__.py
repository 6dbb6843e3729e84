"""One self-contained page on what a run, or several, came to."""
