"""With this directory on PYTHONPATH, every Python process runs on the simulated card's host."""

import gaudi_host

gaudi_host.pretend()
