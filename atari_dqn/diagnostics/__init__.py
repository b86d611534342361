"""What `bench` and `doctor` measure and check."""
