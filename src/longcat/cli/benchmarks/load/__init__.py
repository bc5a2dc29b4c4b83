"""Load for a running server: requests as they come, and how long each waits for what."""
