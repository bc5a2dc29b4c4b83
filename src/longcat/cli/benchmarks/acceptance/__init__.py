"""Draft acceptance of finished runs on fresh prompts: the command, the figures, the page."""
