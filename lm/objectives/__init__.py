"""What is predicted from what: an objective turns rows of a token store into a batch, and a batch into sums of losses."""
