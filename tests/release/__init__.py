"""What has to be so before a release: ``python -m tests.release``, or ``make release-check``."""
