"""What production breaks, broken on purpose: real servers, real processes, a real network between them."""
