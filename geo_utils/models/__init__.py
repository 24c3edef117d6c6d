"""Language models behind one protocol, and the caller between them and the roles."""
