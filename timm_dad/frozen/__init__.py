"""Teacher and VQGAN in use: frozen, in their own precision, compiled."""
