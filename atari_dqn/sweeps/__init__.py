"""Many runs: games times seeds times settings, on this machine or on a Ray cluster."""
