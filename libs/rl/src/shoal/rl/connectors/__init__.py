"""What happens to observations on their way to the network."""
