"""Settings: every one with its meaning, unit, bounds and source; what follows from them; what may change live."""
