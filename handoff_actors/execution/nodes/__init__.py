"""A run over several nodes: where its functions go, guests that run them there, values between."""
