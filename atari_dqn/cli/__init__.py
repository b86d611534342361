"""What commands share: flags, exit codes, console output, number formats."""
