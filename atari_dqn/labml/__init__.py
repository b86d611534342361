"""The labml client in a process of its own, and the dashboard's server and page."""
