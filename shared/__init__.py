"""What server and client must agree on: data, model, privacy arithmetic, messages."""
