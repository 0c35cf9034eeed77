"""What the services share: wire types, config, broker, video, answers. Never imports a service."""
