"""Pictures and films of games, with what the network thinks beside them."""
