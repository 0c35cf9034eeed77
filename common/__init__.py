"""What the services share: wire types, config, the broker, video decoding, answer parsing. Never imports a service."""
