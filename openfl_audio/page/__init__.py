"""The page in the browser: a process of its own that shows what the director says, and asks it to steer."""
