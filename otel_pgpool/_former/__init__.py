"""Former names of private modules, which lead to the present ones."""
