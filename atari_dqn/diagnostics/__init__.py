"""Speed measurements and machine checks, for the commands `bench` and `doctor`."""
