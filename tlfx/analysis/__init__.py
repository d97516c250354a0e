"""What can be measured of an aligned model."""
