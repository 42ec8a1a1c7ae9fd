"""What a system looks like from outside; nothing here changes a bit."""
