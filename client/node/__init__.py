"""Node: a site's folder made ready, and the SuperNode that connects it to a server, kept running."""
