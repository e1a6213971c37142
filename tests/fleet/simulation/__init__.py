"""A fleet of simulated processes: the parts of the pool are real; clock, threads, locks and network are simulated."""
