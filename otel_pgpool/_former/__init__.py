"""Former names of private modules, mapped to the present modules."""
