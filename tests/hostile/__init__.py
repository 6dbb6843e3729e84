"""What a file, a name or a config of bad will may do: end in one sentence."""
