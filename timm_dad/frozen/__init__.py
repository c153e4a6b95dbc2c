"""Teacher and VQGAN at work: frozen, in a precision of their own, compiled."""
