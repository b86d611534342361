"""Reports to a labml server from a process of their own, and the dashboard that serves labml's page."""
