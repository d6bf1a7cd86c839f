"""Routes of the decision service, by topic: each module adds its own with `add_routes(app, service)`."""
