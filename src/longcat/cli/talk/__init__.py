"""What `longcat chat` is made of: the session, who answers, the commands, the screen."""
