"""Fault injection: real servers, processes and networks are broken on purpose while an application works."""
