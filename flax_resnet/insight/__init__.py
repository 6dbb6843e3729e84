"""What skip connections do, measured on networks as they are."""
