"""What is known before a token -> its value: the sources a critic is made of."""
