"""Where a run takes place: a process of its own or this one, and how it ends."""
