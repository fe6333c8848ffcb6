"""What the commands do, once it is known what is asked for: loaded only then."""
