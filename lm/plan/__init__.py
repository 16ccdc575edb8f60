"""Planning: whether a run fits chips that are not here, how fast it should go, and how to lay it out."""
