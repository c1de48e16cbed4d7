"""What a token's state is worth: the sources that a critic adds up."""
