"""What other libraries made, read and written as this one has it."""
